"""Bytes and names of a zip archive, and how it is refused."""

from __future__ import annotations

import os
from typing import BinaryIO

from workers.engine.errors import BadData

UTF8 = 1 << 11
"""Flag of an entry whose name is UTF-8."""

_REPACK = "make the archive anew with np.savez or an ordinary zip program"


def read(file: BinaryIO, offset: int, size_bytes: int) -> bytes:
    """Exactly `size_bytes` bytes at `offset`; limits on both were checked by the caller.

    Raises:
        BadData: they are not in the file.
    """
    try:
        found = os.pread(file.fileno(), size_bytes, offset)
    except (OverflowError, OSError) as e:
        raise refused(f"it points to byte {offset:,}, outside the file") from e
    if len(found) != size_bytes:
        raise refused(f"it ends at byte {offset + len(found):,}, before {offset + size_bytes:,}")
    return found


def decode(name: bytes, flags: int) -> str:
    """A member's name, by the flags of its entry."""
    try:
        return name.decode("utf-8" if flags & UTF8 else "cp437")
    except UnicodeDecodeError as e:
        raise refused(f"member name {name[:80]!r} is not UTF-8, as it claims") from e


def refused(reason: str, member: str = "", *, hint: str = _REPACK) -> BadData:
    """The error for an archive that is damaged or breaks a limit."""
    return BadData(
        f"the dataset's archive is refused: {reason}",
        layer=member,
        hint=hint,
    )
