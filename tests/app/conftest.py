"""A running API: real HTTP on a free port, in this process, over a database and store of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn

from app import accounts, db, main
from tests import servers


@dataclass(frozen=True)
class Api:
    """A served API and the key of a project in it."""

    url: str
    project_id: str
    key: str

    def client(self, key: str | None = None) -> httpx.Client:
        """A client that sends the project's key, or another; with '' none."""
        key = self.key if key is None else key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)


@pytest.fixture
def serve() -> Iterator[Callable[[], str]]:
    """Serves the API with the settings that `configure` gave; answers its URL.

    The application is the one that was made at import: making a new one, and its routes, takes half a second.
    """
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start() -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(main.app, log_config=None, timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, _ in running:
        server.should_exit = True
    _join(thread for _, thread in running)
    _join(thread for thread in threading.enumerate() if thread.name == "AnyIO worker thread")


def _join(threads: Iterable[threading.Thread]) -> None:
    """Waits for the server, then for the requests it cut off: they'd go on over a database that is taken away."""
    for thread in threads:
        thread.join(timeout=15)
        assert not thread.is_alive(), f"{thread.name} still runs"


@pytest.fixture(params=["file", "s3"])
def storage_settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, object]:
    """Settings that name a store; a test that asks for it runs on a directory and on a bucket."""
    if request.param == "file":
        return {"storage_url": (tmp_path / "files").as_uri()}
    bucket: servers.S3 = request.getfixturevalue("s3")
    return dict(bucket.settings)


def new_project(name: str, *, admin: bool = False) -> tuple[str, str]:
    """The id of a fresh project and a key of it."""
    with db.transaction() as session:
        project = accounts.create_project(session, name)
        _, key = accounts.create_key(session, project.id, "tests", admin=admin)
        return project.id, key


@pytest.fixture
def project_id(configure: Callable[..., None], database_url: str) -> str:
    """A project in a fresh database, on SQLite and on Postgres."""
    configure(database_url=database_url)
    with db.transaction() as session:
        return accounts.create_project(session, "ours").id


@pytest.fixture
def api(configure: Callable[..., None], sqlite_database_url: str, serve: Callable[[], str]) -> Api:
    """The API over a fresh SQLite database and directory."""
    configure(database_url=sqlite_database_url)
    return Api(serve(), *new_project("ours"))


@pytest.fixture(params=["embedded", "deployed"])
def any_api(request: pytest.FixtureRequest, configure: Callable[..., None]) -> Api:
    """The API over SQLite and a directory, and over Postgres and a bucket."""
    if request.param == "embedded":
        configure(database_url=request.getfixturevalue("sqlite_database_url"))
    else:
        bucket: servers.S3 = request.getfixturevalue("s3")
        url = request.getfixturevalue("postgres_database_url")
        configure(database_url=url, **bucket.settings)
    serve = request.getfixturevalue("serve")  # after the database, so that it ends before
    return Api(serve(), *new_project("ours"))


@pytest.fixture
def client(api: Api) -> Iterator[httpx.Client]:
    """A client of `api`, with the project's key."""
    with api.client() as client:
        yield client


@pytest.fixture
def any_client(any_api: Api) -> Iterator[httpx.Client]:
    """A client of `any_api`, with the project's key."""
    with any_api.client() as client:
        yield client
