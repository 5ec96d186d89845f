"""A local file that is written while its bytes come, appears whole or not at all, and is on its way to disk before the last byte."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

import anyio

_SYNC_BYTES = 64 << 20


async def write(path: Path, blocks: AsyncIterator[bytes]) -> None:
    """Writes the blocks while the next ones come; the file is renamed to `path` after the last one.

    Raises:
        OSError: there is no room, or no right to write there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f"{path.name}.incoming")
    try:
        with staged.open("wb") as file:
            await _write_all(_Writer(file), blocks)
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


async def _write_all(writer: _Writer, blocks: AsyncIterator[bytes]) -> None:
    try:
        async for block in blocks:
            await writer.put(block)
    finally:
        with anyio.CancelScope(shield=True):  # a thread must not write to a closed file
            await writer.drain()


class _Writer:
    """Writes in one thread and forces to disk in another, so that neither the network nor the hash waits for them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._unsynced_bytes = 0
        self._writing: asyncio.Future[object] | None = None
        self._syncing: asyncio.Future[object] | None = None

    async def put(self, block: bytes) -> None:
        """Begins to write a block, once the one before is written."""
        if self._writing is not None:
            await self._writing
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(None, self._file.write, block)
        self._unsynced_bytes += len(block)
        if self._unsynced_bytes >= _SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            self._unsynced_bytes = 0
            self._syncing = loop.run_in_executor(None, os.fdatasync, self._file.fileno())

    async def drain(self) -> None:
        """Waits for both threads; raises what the last write raised."""
        begun = [each for each in (self._writing, self._syncing) if each is not None]
        for ended in await asyncio.gather(*begun, return_exceptions=True):
            if isinstance(ended, BaseException):
                raise ended
