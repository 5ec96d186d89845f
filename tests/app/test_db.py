"""The engine on SQLite, where processes and threads meet on one file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

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
