"""One synchronous engine for a process, and one transaction for a request or task."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.orm import Session, SessionTransaction

from app import settings, tables

_PATIENCE_S = 15
_making = threading.Lock()


def make_engine(url: str) -> Engine:
    """An engine for Postgres or SQLite; connections are made when first needed."""
    if url.startswith("sqlite"):
        return _sqlite(url)
    options = "-c statement_timeout=15000 -c idle_in_transaction_session_timeout=30000"
    return create_engine(
        url,
        pool_pre_ping=True,
        pool_size=10,
        max_overflow=20,
        connect_args={"options": options, "connect_timeout": 5},
    )


def _sqlite(url: str) -> Engine:
    engine = create_engine(url, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are ours, so that DDL is in them too
        for pragma in (
            f"busy_timeout={_PATIENCE_S * 1000}",
            "synchronous=NORMAL",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")
        _use_wal(connection)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # a reader that later writes would deadlock

    return engine


def _use_wal(connection: Any) -> None:
    """Lets readers and a writer work at once. The first to open a new file switches it, and SQLite refuses others
    meanwhile without waiting (busy_timeout does not hold for the switch), so this waits.
    """
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


@cache
def made_engine() -> Engine:
    """The engine, for a single thread."""
    return make_engine(settings.get().resolved_database_url)


def engine() -> Engine:
    """The engine of this process, one whichever threads ask first; a forked child must call `forget_engine` first."""
    if made_engine.cache_info().currsize:
        return made_engine()
    with _making:
        return made_engine()


def forget_engine() -> None:
    """Drops the connections inherited over a fork, without closing the parent's."""
    if made_engine.cache_info().currsize:
        made_engine().dispose(close=False)
        made_engine.cache_clear()


@contextmanager
def transaction() -> Iterator[Session]:
    """A session that commits when the block ends and rolls back when it raises."""
    with Session(engine(), expire_on_commit=False) as session, session.begin():
        yield session


def on_commit(session: Session, act: Callable[[], object]) -> None:
    """Runs `act` once after the session's transaction has committed, savepoints apart; never if it rolls back."""
    waiting = [act]

    @event.listens_for(session, "after_commit")
    def _committed(_session: Session) -> None:
        if waiting and not session.in_nested_transaction():
            waiting.pop()()

    @event.listens_for(session, "after_transaction_end")
    def _ended(_session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            waiting.clear()


def now(session: Session) -> datetime:
    """The database's clock: leases are written and judged by it, so that workers' clocks do not matter."""
    if session.get_bind().dialect.name == "sqlite":
        return tables.now()
    moment: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return moment
