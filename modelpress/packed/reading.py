"""Reads a packed file as the work of an enemy: every number has a limit, every read an end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO


class PackedError(ValueError):
    """The file is no packed model, or is damaged, or asks for more than is allowed."""


class Reader:
    """A stream that ends where its part of the file does."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file, self.left = file, size_bytes

    def take(self, count: int, what: str) -> bytes:
        """The next bytes.

        Raises:
            PackedError: fewer are left.
        """
        if count > self.left:
            raise PackedError(f"truncated: {what} has {count:,} bytes, {self.left:,} are left")
        found = self._file.read(count)
        if len(found) != count:
            raise PackedError(f"truncated within {what}")
        self.left -= count
        return found

    def byte(self, what: str) -> int:
        """The next byte. Raises as `take`."""
        return self.take(1, what)[0]

    def number(self, what: str, limit: int) -> int:
        """An unsigned LEB128 number.

        Raises:
            PackedError: it is over the limit, or has more bytes than it needs, or the file ends within it.
        """
        value = shift = 0
        while True:
            byte = self.byte(what)
            value |= (byte & 0x7F) << shift
            if value > limit or shift > 63:
                raise PackedError(f"{what} is over {limit:,}")
            if byte < 0x80:
                break
            shift += 7
        if shift and not byte:
            raise PackedError(f"{what} is written with more bytes than it needs")
        return value

    def choice(self, what: str, known: int) -> int:
        """A byte below `known`.

        Raises:
            PackedError: this version knows no such choice.
        """
        found = self.byte(what)
        if found >= known:
            raise PackedError(f"{what} {found} is none that this version knows")
        return found

    def blob(self, what: str, limit: int) -> bytes:
        """Bytes behind their number. Raises as `number` and `take`."""
        return self.take(self.number(f"length of {what}", limit), what)

    @contextmanager
    def part(self, size_bytes: int, what: str) -> Iterator[Reader]:
        """A reader of the next bytes, all of which must be read.

        Raises:
            PackedError: they are not there, or some are left over.
        """
        if size_bytes > self.left:
            raise PackedError(f"truncated: {what} has {size_bytes:,} bytes, {self.left:,} are left")
        inner = Reader(self._file, size_bytes)
        yield inner
        if inner.left:
            raise PackedError(f"{what} has {inner.left:,} bytes too many")
        self.left -= size_bytes
