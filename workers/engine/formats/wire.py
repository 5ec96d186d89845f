"""A reader of protobuf's wire format that trusts nothing: it knows lengths, not meanings.

Used before any real parser sees an uploaded file. Messages are split into fields without copying.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from workers.engine.errors import BadModel

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

MAX_FIELDS = 5_000_000
"""Fields of all messages together."""


@dataclass
class Message:
    """The fields of one message, by number, in the file's order."""

    numbers: dict[int, list[int]] = field(default_factory=dict)
    """Varints and fixed-size numbers, as unsigned bits."""
    blobs: dict[int, list[memoryview]] = field(default_factory=dict)
    """Strings, bytes, messages and packed numbers."""

    def number(self, key: int, default: int = 0) -> int:
        """A singular integer; of several the last counts, as in every protobuf parser."""
        return self.numbers.get(key, [default])[-1]

    def text(self, key: int) -> str:
        """A singular string.

        Raises:
            BadModel: it is not UTF-8.
        """
        blobs = self.blobs.get(key, [])
        return as_text(blobs[-1]) if blobs else ""

    def message(self, key: int) -> memoryview | None:
        """A singular message.

        Raises:
            BadModel: it occurs twice. Parsers would merge the two, and checks would see neither.
        """
        blobs = self.blobs.get(key, [])
        if len(blobs) > 1:
            raise BadModel(f"protobuf field {key} occurs {len(blobs)} times; it may occur once")
        return blobs[0] if blobs else None

    def either(self, singular: int, repeated: int) -> list[memoryview]:
        """What a singular message and its repeated sibling hold together.

        Raises:
            BadModel: the singular one occurs twice.
        """
        one = self.message(singular)
        return ([] if one is None else [one]) + self.many(repeated)

    def many(self, key: int) -> list[memoryview]:
        """A repeated message, string or bytes."""
        return self.blobs.get(key, [])

    def integers(self, key: int) -> list[int]:
        """A repeated signed 64-bit integer, packed or not.

        Raises:
            BadModel: the packed form ends within a number.
        """
        values = list(self.numbers.get(key, []))
        for blob in self.blobs.get(key, []):
            at = 0
            while at < len(blob):
                value, at = _varint(blob, at)
                values.append(value)
        return [value - 2**64 if value >= 2**63 else value for value in values]

    def count(self, key: int, item_bytes: int) -> int:
        """How many numbers a repeated field has; item_bytes 0 means varints."""
        packed = self.blobs.get(key, [])
        if item_bytes:
            inside = sum(len(blob) for blob in packed) // item_bytes
        else:
            inside = sum(_varints_in(blob) for blob in packed)
        return inside + len(self.numbers.get(key, []))


class Reader:
    """Splits messages, counting fields over the whole file."""

    def __init__(self, max_fields: int = MAX_FIELDS) -> None:
        self.max_fields, self.left = max_fields, max_fields

    def read(self, view: memoryview) -> Message:
        """The fields of a message.

        Raises:
            BadModel: the bytes are no message: cut short, a group, a bad tag, or too many fields.
        """
        message = Message()
        for number, kind, value in self._fields(view):
            if kind == BYTES:
                assert isinstance(value, memoryview)
                message.blobs.setdefault(number, []).append(value)
            else:
                assert isinstance(value, int)
                message.numbers.setdefault(number, []).append(value)
        return message

    def _fields(self, view: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
        at, end = 0, len(view)
        while at < end:
            self.left -= 1
            if self.left < 0:
                raise BadModel(f"the file has more than {self.max_fields:,} protobuf fields")
            tag, at = _varint(view, at)
            number, kind = tag >> 3, tag & 7
            if number == 0 or kind not in (VARINT, FIXED64, BYTES, FIXED32):
                raise BadModel(f"not a protobuf message: tag {tag} at byte {at} of {end}")
            value: int | memoryview
            if kind == VARINT:
                value, at = _varint(view, at)
            else:
                size = {FIXED64: 8, FIXED32: 4}.get(kind, 0)
                if kind == BYTES:
                    size, at = _varint(view, at)
                if size > end - at:
                    raise BadModel(
                        f"truncated: {size:,} bytes are announced, {end - at:,} are left"
                    )
                blob = view[at : at + size]
                value = blob if kind == BYTES else int.from_bytes(blob, "little")
                at += size
            yield number, kind, value


def as_text(blob: memoryview) -> str:
    """Bytes as UTF-8 text.

    Raises:
        BadModel: they are not UTF-8.
    """
    try:
        return bytes(blob).decode()
    except UnicodeDecodeError as error:
        raise BadModel(f"a text in the file is not UTF-8: {error.reason}") from error


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """The number at a position, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            raise BadModel("truncated: the file ends within a number")
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), at
    raise BadModel("not a protobuf message: a number of more than ten bytes")


def _varints_in(blob: memoryview) -> int:
    return int(np.count_nonzero(np.frombuffer(blob, np.uint8) < 0x80))
