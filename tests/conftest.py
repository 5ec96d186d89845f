"""Fixtures that every test may use: real servers for the session, a fresh database and settings for a test."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import sqlalchemy

from app import db, settings, tables
from modelpress import embedded
from tests import servers

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a background shell has it ignored, which children inherit

_numbers = itertools.count(1)
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone")  # two may share a Postgres
TEMPLATE = f"modelpress_{WORKER}_template"


class Service(NamedTuple):
    """A service that runs, and how to reach it."""

    home: Path
    url: str
    key: str


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what tests recorded as `record_property("figure", ...)`: their own output is shown only where they fail."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name == "figure":
                terminalreporter.write_line(str(value))


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_running() -> Iterator[None]:
    yield
    servers.close()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of the `postgres` database of a real Postgres."""
    with servers.postgres() as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a real Valkey or Redis."""
    with servers.redis() as url:
        yield url


@pytest.fixture(scope="session")
def s3() -> Iterator[servers.S3]:
    """A real S3-speaking server with a bucket; `s3.settings` leads ours to it."""
    with servers.s3() as store:
        yield store


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The embedded service, started as a user starts it, with leases short enough for tests of its failures."""
    home = tmp_path_factory.mktemp("service") / "home"
    impatient = {
        "MODELPRESS_LEASE_S": "6",
        "MODELPRESS_HEARTBEAT_S": "1",
        "MODELPRESS_SWEEP_S": "1",
        "MODELPRESS_RESEND_S": "3",
    }
    with embedded.server(home, settings=impatient):
        found = json.loads((home / "key.json").read_text())
        yield Service(home, found["url"], found["key"])


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a fresh database with all tables; a test that asks for it runs once on each kind."""
    url: str = request.getfixturevalue(f"{request.param}_database_url")
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a fresh database without any table, once on each kind."""
    url: str = request.getfixturevalue(f"empty_{request.param}_url")
    return url


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'empty.db'}"


@pytest.fixture
def empty_postgres_url(postgres_url: str) -> Iterator[str]:
    """The URL of a fresh Postgres database without any table."""
    with _postgres_database(postgres_url, "template1") as url:
        yield url


@pytest.fixture
def sqlite_database_url(tmp_path: Path, _sqlite_template: Path) -> str:
    """The URL of a fresh SQLite database with all tables."""
    path = tmp_path / "modelpress.db"
    shutil.copyfile(_sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_database_url(_postgres_template: str) -> Iterator[str]:
    """The URL of a fresh Postgres database with all tables."""
    with _postgres_database(_postgres_template, TEMPLATE) as url:
        yield url


@pytest.fixture(scope="module")
def shared_postgres_url(_postgres_template: str) -> Iterator[str]:
    """The URL of a Postgres database with all tables, which the tests of a module share."""
    with _postgres_database(_postgres_template, TEMPLATE) as url:
        yield url


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Gives this process settings by field name: `configure(database_url=..., lease_s=2)`; undone after the test.

    Whatever a test does not set has its default, but for `home`, which is its `tmp_path`.
    """

    def use(**values: object) -> None:
        for name, value in servers.variables(**{"home": tmp_path, **values}).items():
            monkeypatch.setenv(name, value)
        _forget()

    yield use
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    if db.made_engine.cache_info().currsize:
        _rest(db.engine().pool)
        db.engine().dispose()
    db.made_engine.cache_clear()
    settings.get.cache_clear()


def _rest(pool: sqlalchemy.Pool) -> None:
    """Waits for the transactions that a request which was cut off still ends in a thread: their connections come back."""
    patience = time.monotonic() + 10
    while isinstance(pool, sqlalchemy.QueuePool) and pool.checkedout():
        assert time.monotonic() < patience, f"{pool.checkedout()} connections were never returned"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    _create_tables(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def _postgres_template(postgres_url: str) -> str:
    _administer(postgres_url, f"DROP DATABASE IF EXISTS {TEMPLATE}", f"CREATE DATABASE {TEMPLATE}")
    _create_tables(_sibling(postgres_url, TEMPLATE))
    return postgres_url


def _create_tables(url: str) -> None:
    engine = db.make_engine(url)
    tables.Table.metadata.create_all(engine)
    engine.dispose()


@contextlib.contextmanager
def _postgres_database(server: str, template: str) -> Iterator[str]:
    name = f"modelpress_{WORKER}_{next(_numbers)}"
    drop = f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"
    _administer(server, drop, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _sibling(server, name)
    _administer(server, drop)


def _administer(url: str, *statements: str) -> None:
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def _sibling(url: str, database: str) -> str:
    return sqlalchemy.make_url(url).set(database=database).render_as_string(hide_password=False)
