"""Symbols and what they stand for: a tensor of few distinct values is a table of these and a map of indices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelpress.packed.reading import PackedError, Reader

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
"""Bits of an element."""
MAX_SYMBOLS = 1 << 16
EXPLICIT, RANGE = 0, 1

Elements = NDArray[np.unsignedinteger]


def dtype(width: int) -> np.dtype[np.unsignedinteger]:
    """The type that holds elements of so many bits, little-endian."""
    return np.dtype(f"<u{max(width // 8, 1)}")


def read_table(reader: Reader, width: int) -> Elements:
    """The values that symbols stand for.

    EXPLICIT: which bytes of the values are not all zero, then of each such byte the plane. RANGE: the first value, the others
    count up, and from the largest on to 0.

    Raises:
        PackedError: there are none, or more than MAX_SYMBOLS, or one does not fit the width.
    """
    count = reader.number("number of symbols", MAX_SYMBOLS)
    if not count:
        raise PackedError("a table has no symbols")
    kind = reader.choice("form of a table", 2)
    held = dtype(width)
    if kind == RANGE:
        first = int.from_bytes(reader.take(held.itemsize, "start of a table"), "little")
        up = np.arange(count, dtype=np.uint64) + np.uint64(first)  # modulo 2^64
        table: Elements = (up & np.uint64(2**width - 1)).astype(held)
    else:
        table = _planes(reader, count, held)
    if width < 8 and int(table.max()) >> width:
        raise PackedError(f"a table has a value of more than {width} bits")
    return table


def _planes(reader: Reader, count: int, held: np.dtype[np.unsignedinteger]) -> Elements:
    planes = np.zeros((count, held.itemsize), np.uint8)
    present = reader.choice("planes of a table", 1 << held.itemsize)
    for index in range(held.itemsize):
        if present >> index & 1:
            planes[:, index] = np.frombuffer(reader.take(count, "a plane of a table"), np.uint8)
    return planes.reshape(-1).view(held)


def join(elements: Elements, width: int) -> bytes:
    """The bytes of elements; the first of several in a byte is its lowest."""
    if width >= 8:
        return elements.astype(dtype(width), copy=False).tobytes()
    per_byte = 8 // width
    grouped = elements.reshape(-1, per_byte).astype(np.uint8)
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    joined: NDArray[np.uint8] = np.bitwise_or.reduce(grouped << shifts, axis=1)
    return joined.tobytes()


def split(content: bytes, width: int) -> Elements:
    """The elements of bytes: the inverse of `join`."""
    if width >= 8:
        return np.frombuffer(content, dtype(width))
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    found: NDArray[np.uint8] = np.frombuffer(content, np.uint8)[:, None] >> shifts & np.uint8(
        (1 << width) - 1
    )
    return found.reshape(-1)


def rotate(elements: Elements, width: int, by: int) -> Elements:
    """Elements whose bits are moved up by `by`, those that fall out come in below."""
    low, high = elements.dtype.type(by), elements.dtype.type(width - by)
    found: Elements = (elements << low) | (elements >> high)
    return found


def planes_of(elements: Elements) -> NDArray[np.uint8]:
    """The bytes of each element, lowest first: [n, bytes]."""
    little = np.ascontiguousarray(elements.astype(elements.dtype.newbyteorder("<"), copy=False))
    return little.view(np.uint8).reshape(-1, elements.dtype.itemsize)
