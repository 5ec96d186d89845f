"""Symbols and what they stand for: a tensor of few distinct values is a table of these and a map of indices."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from modelpress.packed import bits
from modelpress.packed.reading import PackedError, Reader

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
"""Bits of an element."""
MAX_SYMBOLS = 1 << 16
EXPLICIT, RANGE, RISING, RISING_FLOATS = range(4)
"""How the values of a table are given."""

Elements = NDArray[np.unsignedinteger]


def dtype(width: int) -> np.dtype[np.unsignedinteger]:
    """The type that holds elements of so many bits, little-endian."""
    return np.dtype(f"<u{max(width // 8, 1)}")


def read_table(reader: Reader, width: int) -> Elements:
    """The values that symbols stand for.

    EXPLICIT: which bytes of the values are not all zero, then of each such byte the plane. RANGE: the first value, the others
    count up, and from the largest on to 0. RISING: the first value, and by how much each is above the one before.

    Raises:
        PackedError: there are none, or more than MAX_SYMBOLS or than elements of the width can tell apart, or one does not fit it.
    """
    count = reader.number("number of symbols", min(MAX_SYMBOLS, 1 << width))
    if not count:
        raise PackedError("a table has no symbols")
    kind = reader.choice("form of a table", 4)
    held = dtype(width)
    if kind == EXPLICIT:
        table: Elements = _planes(reader, count, held)
    else:
        first = int.from_bytes(reader.take(held.itemsize, "start of a table"), "little")
        above = np.arange(count, dtype=np.uint64)
        if kind != RANGE:
            above[1:] = np.cumsum(_steps(reader, count - 1, width), dtype=np.uint64)
        up = above + np.uint64(first)  # modulo 2^64
        table = (up & np.uint64(2**width - 1)).astype(held)
    if kind == RISING_FLOATS:
        table = floats_of(table, width)
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


def _steps(reader: Reader, count: int, width: int) -> NDArray[np.uint64]:
    """Numbers of 1 and more: of each how many bits it has below its highest, then those of all."""
    if width not in (16, 32):
        raise PackedError(f"no table of {width} bits is given by steps")
    size = width.bit_length() - 1
    lengths = bits.unpack(
        reader.take(bits.size_bytes(count, size), "lengths of steps"), count, size
    )
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if count else 0
    words = bits.words(reader.take((total + 7) // 8, "steps of a table"))
    starts = (ends - lengths).astype(np.uint64)
    found = words[starts >> np.uint64(3)] << (starts & np.uint64(7))
    lengths = lengths.astype(np.uint64)
    below = found >> np.uint64(1) >> (np.uint64(63) - lengths)
    steps: NDArray[np.uint64] = below | np.uint64(1) << lengths
    return steps


def floats_of(keys: Elements, width: int) -> Elements:
    """The bits of floats whose keys rise as they do: the inverse of `keys_of`."""
    top, ones = keys.dtype.type(1 << (width - 1)), keys.dtype.type(2**width - 1)
    return keys ^ np.where(keys & top, top, ones)


def keys_of(floats: Elements, width: int) -> Elements:
    """Numbers that rise as floats do: of negative ones all bits are turned, of others the sign."""
    top, ones = floats.dtype.type(1 << (width - 1)), floats.dtype.type(2**width - 1)
    return floats ^ np.where(floats & top, ones, top)


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
    found = _in_byte(width).take(np.frombuffer(content, np.uint8)).view(np.uint8)
    return found.reshape(-1)


@cache
def _in_byte(width: int) -> Elements:
    """What each byte holds, as one number whose bytes are the elements."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    elements = np.arange(256, dtype=np.uint8)[:, None] >> shifts & np.uint8((1 << width) - 1)
    found: Elements = elements.view(f"u{8 // width}").reshape(-1)
    return found


def rotate(elements: Elements, width: int, by: int) -> Elements:
    """Elements whose bits are moved up by `by`, those that fall out come in below."""
    low, high = elements.dtype.type(by), elements.dtype.type(width - by)
    found: Elements = (elements << low) | (elements >> high)
    return found


def planes_of(elements: Elements) -> NDArray[np.uint8]:
    """The bytes of each element, lowest first: [n, bytes]."""
    little = np.ascontiguousarray(elements.astype(elements.dtype.newbyteorder("<"), copy=False))
    return little.view(np.uint8).reshape(-1, elements.dtype.itemsize)
