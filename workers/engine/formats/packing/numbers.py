"""How numbers and bytes are written: the inverse of modelpress.packed.reading."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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


def packed(values: NDArray[np.integer], width: int) -> bytes:
    """Numbers of `width` bits each, one behind the other, the highest bit of each first."""
    each = values[:, None].astype(np.int64) >> np.arange(width)[::-1] & 1
    return np.packbits(each.astype(np.uint8)).tobytes()


def packed_tails(values: NDArray[np.unsignedinteger], lengths: NDArray[np.integer]) -> bytes:
    """Of each number as many of its lowest bits as `lengths` says, one behind the other."""
    ends = np.cumsum(lengths)
    below = np.repeat(ends, lengths) - np.arange(int(ends[-1]) if len(ends) else 0) - 1
    tails = np.repeat(values.astype(np.int64), lengths) >> below & 1
    return np.packbits(tails.astype(np.uint8)).tobytes()
