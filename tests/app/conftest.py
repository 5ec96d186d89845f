"""A running API: real HTTP on a free port, in this process, over a database and store of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
import uvicorn

from app import accounts, db, main


@pytest.fixture
def serve() -> Iterator[Callable[[], str]]:
    """Starts the API with the settings that `configure` gave; answers its URL."""
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start() -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(main.create_app(), log_config=None, timeout_graceful_shutdown=2)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture
def project(configure: Callable[..., None], sqlite_database_url: str) -> Iterator[str]:
    """The id of a project in a fresh SQLite database, which the settings of this process name."""
    configure(database_url=sqlite_database_url)
    with db.transaction() as session:
        return accounts.create_project(session, "tests").id
