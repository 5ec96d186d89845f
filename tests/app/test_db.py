"""The engine on SQLite, where processes and threads meet on one file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import Engine

from app import db

OPENERS, FILES = 4, 60


def test_a_new_file_can_be_opened_by_several_at_once(tmp_path: Path) -> None:
    """One of them switches the file to WAL; SQLite refuses the others meanwhile, without waiting."""
    together = Barrier(OPENERS)

    def open_file(number: int) -> str:
        engine = db.make_engine(f"sqlite:///{tmp_path / f'{number}.db'}")
        together.wait()
        with engine.connect() as connection:
            mode: str = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
        engine.dispose()
        return mode

    with ThreadPoolExecutor(OPENERS) as pool:
        for number in range(FILES):
            assert list(pool.map(open_file, [number] * OPENERS)) == ["wal"] * OPENERS


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("hurried")
def test_threads_that_ask_at_once_get_one_engine(
    configure: Callable[..., None], sqlite_database_url: str
) -> None:
    for _ in range(FILES):
        configure(database_url=sqlite_database_url)
        together = Barrier(OPENERS)
        with ThreadPoolExecutor(OPENERS) as pool:
            asked = [pool.submit(_engine, together) for _ in range(OPENERS)]
        assert len({id(each.result()) for each in asked}) == 1


def _engine(together: Barrier) -> Engine:
    together.wait()
    return db.engine()
