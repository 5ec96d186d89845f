"""A local file that is written while its bytes come."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from app import localfile

BLOCK = bytes(range(256)) * 4096  # 1 MiB


async def _blocks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield BLOCK


@pytest.fixture
def little_room() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_blocks_arrive_in_order_also_where_some_are_forced_to_disk_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localfile, "_SYNC_BYTES", 2 << 20)

    async def numbered() -> AsyncIterator[bytes]:
        for number in range(32):
            yield bytes([number]) * (1 << 20)

    asyncio.run(localfile.write(tmp_path / "deep" / "file", numbered()))

    written = (tmp_path / "deep" / "file").read_bytes()
    assert written == b"".join(bytes([number]) * (1 << 20) for number in range(32))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


def test_a_cancelled_write_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"before")
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield BLOCK
            begun.set()
            await asyncio.sleep(0)

    async def scenario() -> None:
        task = asyncio.create_task(localfile.write(tmp_path / "file", endless()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"before"}


@pytest.mark.usefixtures("little_room")
def test_a_write_that_fails_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large"):
        asyncio.run(localfile.write(tmp_path / "file", _blocks(16)))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("little_room")
def test_the_last_block_that_fails_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large"):
        asyncio.run(localfile.write(tmp_path / "file", _blocks(5)))

    assert list(tmp_path.iterdir()) == []
