"""Canonical Huffman codes: only the lengths are stored, symbols of a length are numbered in order.

Decoding follows no bit after the other: at every bit of a chunk it is looked up which code would begin there and how long it is, then
jumps over 1, 2, 4, 8 and 16 codes are made from these, and the true beginnings found from long jumps to short ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelpress.packed.reading import PackedError, Reader

LONGEST = 16
"""Bits of the longest code."""
_CHUNK_BITS = 1 << 17
_DOUBLINGS = 4

Symbols = NDArray[np.int32]


@dataclass(frozen=True)
class Code:
    """A complete prefix code.

    Raises:
        PackedError: the lengths are those of no such code.
    """

    lengths: NDArray[np.uint8]
    """Of each symbol's code; 0: it has none. Of a single symbol with a code 0 too: it costs nothing."""
    only: int = -1
    """The symbol, where there is a single one."""

    def __post_init__(self) -> None:
        if self.only >= 0:
            return
        used = self.lengths[self.lengths > 0].astype(np.int64)
        if len(used) < 2 or int((1 << (LONGEST - used)).sum()) != 1 << LONGEST:
            raise PackedError("the lengths of a Huffman code are those of no complete code")

    @property
    def order(self) -> NDArray[np.int64]:
        """The symbols with a code, by its length, then by number: as their codes count up."""
        ranked = np.argsort(self.lengths, kind="stable")
        return ranked[np.count_nonzero(self.lengths == 0) :]

    @property
    def codes(self) -> NDArray[np.int64]:
        """The code of each symbol, as a number of its length in bits."""
        order = self.order
        lengths = self.lengths[order].astype(np.int64)
        spans = 1 << (LONGEST - lengths)
        found = np.zeros(len(self.lengths), np.int64)
        found[order] = (np.cumsum(spans) - spans) >> (LONGEST - lengths)
        return found


def read(reader: Reader, alphabet: int) -> Code:
    """Reads a code: which symbols have one, then their lengths less one, two to a byte.

    Raises:
        PackedError: it is none.
    """
    used = np.ones(alphabet, bool)
    if reader.choice("form of a Huffman table", 2):
        bits = np.frombuffer(reader.take((alphabet + 7) // 8, "symbols of a Huffman code"), "u1")
        used = np.unpackbits(bits, bitorder="little")[:alphabet].astype(bool)
    where = np.flatnonzero(used)
    if not len(where):
        raise PackedError("a Huffman code has no symbols")
    lengths = np.zeros(alphabet, np.uint8)
    if len(where) == 1:
        return Code(lengths, int(where[0]))
    packed = np.frombuffer(reader.take((len(where) + 1) // 2, "lengths of a Huffman code"), "u1")
    halves = np.stack([packed & 15, packed >> 4], 1).reshape(-1)[: len(where)]
    lengths[where] = halves + 1
    return Code(lengths)


class Decoder:
    """Decodes bit streams of one code."""

    def __init__(self, code: Code) -> None:
        self._code = code
        if code.only >= 0:
            return
        self._bits = int(code.lengths.max())
        order, lengths = code.order, code.lengths[code.order].astype(np.int64)
        spans = 1 << (self._bits - lengths)
        self._symbol = np.repeat(order.astype(np.int32), spans)
        self._length = np.repeat(lengths.astype(np.int32), spans)

    def decode(self, stream: bytes, count: int) -> Symbols:
        """The `count` symbols of a stream, the first bit of each byte its highest.

        Raises:
            PackedError: the stream has fewer symbols, or more bytes.
        """
        if self._code.only >= 0 or not count:
            if stream:
                raise PackedError("a Huffman stream is longer than its symbols")
            return np.full(count, max(self._code.only, 0), np.int32)
        padded = np.frombuffer(stream + bytes(4), np.uint8).astype(np.uint32)
        parts, begin, left = [], 0, count
        while left and begin < 8 * len(stream):
            symbols, begin = self._chunk(padded, begin, left, 8 * len(stream))
            parts.append(symbols)
            left -= len(symbols)
        if left or (begin + 7) // 8 != len(stream):
            raise PackedError("a Huffman stream does not have as many symbols as it should")
        return np.concatenate(parts)

    def _chunk(
        self, padded: NDArray[np.uint32], begin: int, left: int, bits: int
    ) -> tuple[Symbols, int]:
        """Up to `left` symbols whose codes begin in the chunk at bit `begin`; the bit behind them."""
        first = begin // 8
        last = min(first + _CHUNK_BITS // 8, (bits + 7) // 8)
        windows = self._windows(padded[first : last + 3])
        size = len(windows)
        steps = np.arange(size, dtype=np.int32)
        steps += self._length[windows]
        beyond = int(steps[-1]) + LONGEST + 1
        jump = np.minimum(
            np.concatenate([steps, np.arange(size, beyond, dtype=np.int32)]), beyond - 1
        )
        starts = _starts(jump, begin - 8 * first, size)
        starts = starts[: min(left, int(np.searchsorted(starts, size)))]
        end = 8 * first + int(jump[starts[-1]])
        if end > bits:
            raise PackedError("truncated within a Huffman stream")
        return self._symbol[windows[starts]], end

    def _windows(self, padded: NDArray[np.uint32]) -> NDArray[np.int64]:
        """At each bit, the number that the next bits are: as many as the longest code has."""
        joined = (padded[:-3] << 16) | (padded[1:-2] << 8) | padded[2:-1]
        shifts = np.arange(24 - self._bits, 16 - self._bits, -1, dtype=np.uint32)
        found = (joined[:, None] >> shifts) & np.uint32((1 << self._bits) - 1)
        return found.reshape(-1).astype(np.int64)


def _starts(jump: NDArray[np.int32], begin: int, size: int) -> NDArray[np.int32]:
    """Where codes begin, in order, from `begin` on; those from `size` on repeat themselves."""
    jumps = [jump]
    for _ in range(_DOUBLINGS):
        jumps.append(jumps[-1][jumps[-1]])
    found, at, far = [], begin, jumps[-1]
    while at < size:
        found.append(at)
        at = int(far[at])
    starts = np.array(found, np.int32)
    for half in reversed(jumps[:-1]):
        starts = np.stack([starts, half[starts]], 1).reshape(-1)
    return starts


def positions(gaps: Symbols) -> NDArray[np.int64]:
    """Where the entries of a relative index are: each gap counts the zeros since the entry before (Han et al. 2016, section 2)."""
    found: NDArray[np.int64] = np.cumsum(gaps.astype(np.int64) + 1) - 1
    return found
