"""Symbols in two parts: a cell, which is entropy coded, and where in the cell a symbol is, which is stored in bits as they are.

A step of the coder takes the longer the larger its alphabet is. Symbols next to each other that are about as frequent are told apart
by bits alone at next to no cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from modelpress.packed import bits, maps
from modelpress.packed.bits import Ints, Words
from modelpress.packed.reading import PackedError, Reader

WIDTH_BITS = 4
"""In which the bits of a cell are written, where cells differ."""
MAX_LOW = (1 << WIDTH_BITS) - 1
"""Bits of the largest cell."""
MAX_CELLS = 64
_CHUNK = 1 << 15
"""Symbols that are put together at a time, so that they stay in the processor's cache."""
_WORD_BITS, _STEP_BITS = 64, 32

Symbols = NDArray[np.int32]


class Cells(Protocol):
    """How an alphabet is cut."""

    @property
    def count(self) -> int:
        """How many cells there are."""

    def decode(self, reader: Reader, cells: Symbols) -> Symbols:
        """The symbols in these cells, where their other bits are what the reader has next.

        Raises:
            PackedError: the bits are not there, or a symbol is beyond its alphabet.
        """


@dataclass(frozen=True)
class Even:
    """Cells of 2^low symbols."""

    alphabet: int
    low: int = 0

    @property
    def count(self) -> int:
        return ((self.alphabet - 1) >> self.low) + 1

    def decode(self, reader: Reader, cells: Symbols) -> Symbols:
        if not self.low:
            return cells
        found = cells << self.low
        for width, below in parts(self.low):
            size = bits.size_bytes(len(cells), width)
            part = maps.split(reader.take(size, "low bits of symbols"), width)[: len(cells)]
            found |= part.astype(np.int32) << below if below else part
        return _within(found, self.alphabet)


def parts(low: int) -> list[tuple[int, int]]:
    """In which parts low bits are stored, the highest first: how many bits, and how many are below them."""
    return [(width, low & (width - 1)) for width in (8, 4, 2, 1) if low & width]


@dataclass(frozen=True)
class Uneven:
    """Cells of 2^width symbols each, one behind the other.

    Raises:
        PackedError: they are not as many as the alphabet needs.
    """

    alphabet: int
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        last = 1 << self.widths[-1]
        if not self.alphabet <= int(self.starts[-1]) + last < self.alphabet + last:
            raise PackedError("cells do not cover their alphabet")

    @property
    def count(self) -> int:
        return len(self.widths)

    @cached_property
    def starts(self) -> Ints:
        """The first symbol of each cell."""
        sizes = 1 << np.array(self.widths, np.int64)
        found: Ints = np.cumsum(sizes) - sizes
        return found

    def decode(self, reader: Reader, cells: Symbols) -> Symbols:
        count = len(cells)
        even = np.append(cells, np.zeros(count % 2, np.int32))
        which = even[::2] * self.count + even[1::2]
        found = self._pairs.decode(reader, which, spare=count % 2 * self.widths[0])
        return _within(found[:count], self.alphabet)

    @cached_property
    def _pairs(self) -> _Pairs:
        return _Pairs(self.starts, np.array(self.widths, np.int64))


class _Pairs:
    """Tables for two cells at a time: the number of a pair is its first cell, times how many cells there are, and its second."""

    def __init__(self, starts: Ints, widths: Ints) -> None:
        first, second = np.divmod(np.arange(len(starts) ** 2), len(starts))
        self._bits = (widths[first] + widths[second]).astype(np.uint8)
        self._unused = np.uint64(_WORD_BITS) - self._bits
        self._below = widths[second].astype(np.uint64)
        self._mask = (np.uint64(1) << self._below) - np.uint64(1)
        self._starts = np.stack([starts[first], starts[second]], 1).astype(np.int32).view(np.int64)

    def decode(self, reader: Reader, pairs: Symbols, spare: int) -> Symbols:
        """The symbols of each pair; of the last, `spare` bits are not there. Raises as `Cells.decode`."""
        used = self._bits.take(pairs, mode="clip")
        ends = np.cumsum(used, dtype=np.int64)
        total = (int(ends[-1]) if len(ends) else 0) - spare
        words = _words(reader.take((total + 7) // 8, "low bits of symbols"))
        ends -= used
        found = np.empty((len(pairs), 2), np.int32)
        for first in range(0, len(pairs), _CHUNK):
            part = slice(first, first + _CHUNK)
            self._chunk(words, ends[part], pairs[part], found[part])
        return found.reshape(-1)

    def _chunk(self, words: Words, starts: Ints, pairs: Symbols, into: Symbols) -> None:
        """Both parts of a pair lie within the word at its start."""
        word = words.take(starts >> 5, mode="clip")
        starts &= _STEP_BITS - 1
        word <<= starts.view(np.uint64)
        word >>= self._unused.take(pairs, mode="clip")
        np.take(self._starts[:, 0], pairs, out=into.view(np.int64)[:, 0], mode="clip")
        above = word >> self._below.take(pairs, mode="clip")
        word &= self._mask.take(pairs, mode="clip")
        np.add(into[:, 0], above, out=into[:, 0], casting="unsafe")
        np.add(into[:, 1], word, out=into[:, 1], casting="unsafe")


def read_uneven(reader: Reader, alphabet: int) -> Uneven:
    """Reads how many cells there are, and the bits of each.

    Raises:
        PackedError: they are none, or not those of this alphabet.
    """
    count = reader.number("number of cells", min(alphabet, MAX_CELLS))
    if not count:
        raise PackedError("an alphabet has no cells")
    packed = reader.take(bits.size_bytes(count, WIDTH_BITS), "bits of cells")
    return Uneven(alphabet, tuple(bits.unpack(packed, count, WIDTH_BITS).tolist()))


def _words(content: bytes) -> Words:
    """Every four bytes, the number that they and the four behind them are."""
    halves = np.frombuffer(content + bytes(8 + -len(content) % 4), ">u4").astype(np.uint64)
    found: Words = halves[:-1] << np.uint64(_STEP_BITS) | halves[1:]
    return found


def _within(symbols: Symbols, alphabet: int) -> Symbols:
    if int(symbols.max(initial=0)) >= alphabet:
        raise PackedError("a symbol is beyond its alphabet")
    return symbols
