"""Numbers of a few bits each, one behind the other, the highest bit of each first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]


def size_bytes(count: int, width: int) -> int:
    """Of so many numbers of `width` bits."""
    return (count * width + 7) // 8


def unpack(content: bytes, count: int, width: int) -> Ints:
    """The numbers, each of `width` bits."""
    found = np.unpackbits(np.frombuffer(content, np.uint8))[: count * width]
    places = 1 << np.arange(width, dtype=np.int64)[::-1]
    numbers: Ints = found.reshape(count, width).astype(np.int64) @ places
    return numbers


def words(content: bytes) -> Words:
    """At each byte, the number that it and the seven behind it are; behind the last come zeros, and one number more."""
    padded = content + bytes(16)
    found = np.empty(len(content) + 8 & ~7, np.uint64)
    for phase in range(8):
        part = found[phase::8]
        part[...] = np.frombuffer(padded, ">u8", len(part), phase)
    return found
