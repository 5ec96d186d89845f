"""How numbers and bytes are written: the inverse of modelpress.packed.reading."""

from __future__ import annotations


def number(value: int) -> bytes:
    """An unsigned LEB128 number."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def blob(content: bytes) -> bytes:
    """Bytes behind their number."""
    return number(len(content)) + content
