"""Canonical Huffman codes: only the lengths are stored, symbols of a length are numbered in order.

A stream consists of lanes that are decoded side by side, a symbol of each at a time: of n lanes, lane i has the symbols i, i + n,
i + 2n, ... How many bits each lane has stands before them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelpress.packed import bits
from modelpress.packed.bits import Ints, Words
from modelpress.packed.reading import PackedError, Reader

LONGEST = 16
"""Bits of the longest code."""
LANE = 512
"""Symbols of a lane, or up to twice as many where there is but one."""
_WORD_BITS = 64

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
    def order(self) -> Ints:
        """The symbols with a code, by its length, then by number: as their codes count up."""
        ranked = np.argsort(self.lengths, kind="stable")
        return ranked[np.count_nonzero(self.lengths == 0) :]

    @property
    def codes(self) -> Ints:
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
        flags = np.frombuffer(reader.take((alphabet + 7) // 8, "symbols of a Huffman code"), "u1")
        used = np.unpackbits(flags, bitorder="little")[:alphabet].astype(bool)
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


def lanes_of(count: int) -> int:
    """How many lanes a stream of so many symbols has."""
    return max(count // LANE, 1)


class Decoder:
    """Decodes streams of one code."""

    def __init__(self, code: Code) -> None:
        self._code = code
        if code.only >= 0:
            return
        self._bits = int(code.lengths.max())
        order, lengths = code.order, code.lengths[code.order].astype(np.int64)
        spans = 1 << (self._bits - lengths)
        self._symbol = np.repeat(order.astype(np.int32), spans)
        self._length = np.repeat(lengths.astype(np.uint64), spans)

    def decode(self, stream: bytes, count: int) -> Symbols:
        """The `count` symbols of a stream, the first bit of each byte its highest.

        Raises:
            PackedError: the stream has fewer symbols, or more bytes.
        """
        if self._code.only >= 0 or not count:
            if stream:
                raise PackedError("a Huffman stream is longer than its symbols")
            return np.full(count, max(self._code.only, 0), np.int32)
        reader = Reader(io.BytesIO(stream), len(stream))
        starts = _starts(reader, lanes_of(count))
        lanes = reader.take(reader.left, "lanes")
        if starts[-1] > 8 * len(lanes):
            raise PackedError("truncated within a Huffman stream")
        symbols, ends = self._side_by_side(lanes, starts, count)
        if (ends[:-1] != starts[1:]).any() or (int(ends[-1]) + 7) // 8 != len(lanes):
            raise PackedError("a Huffman stream does not have as many symbols as it should")
        return symbols

    def _side_by_side(self, lanes: bytes, starts: Ints, count: int) -> tuple[Symbols, Ints]:
        """All symbols, and behind which bit each lane ended."""
        steps = -(-count // len(starts))
        words = bits.words(lanes + bytes(steps * LONGEST // 8))
        found = np.empty((steps, len(starts)), np.int32)
        at = starts.astype(np.uint64)
        per_word = (_WORD_BITS - 7) // self._bits
        for first in range(0, steps, per_word):
            part = found[first : first + per_word]
            left = count - first * len(starts)
            at += self._from_words(words[at >> np.uint64(3)] << (at & np.uint64(7)), part, left)
        return found.reshape(-1)[:count], at.astype(np.int64)

    def _from_words(self, words: Words, into: Symbols, left: int) -> Words:
        """Takes a symbol from each word for each row of `into`, `left` in all; answers how many bits of each word they had."""
        shift = np.uint64(_WORD_BITS - self._bits)
        index, length, taken = np.empty_like(words), np.empty_like(words), np.zeros_like(words)
        for row in into:
            np.right_shift(words, shift, out=index)
            where = index.view(np.int64)
            np.take(self._symbol, where, out=row, mode="clip")
            np.take(self._length, where, out=length, mode="clip")
            length[max(left, 0) :] = 0
            np.left_shift(words, length, out=words)
            np.add(taken, length, out=taken)
            left -= len(words)
        return taken


def _starts(reader: Reader, lanes: int) -> Ints:
    """The bit at which each lane begins. But for the last their bits are given: the fewest, then by how many each has more.

    Raises:
        PackedError: they are not there, or say what no lanes have.
    """
    if lanes == 1:
        return np.zeros(1, np.int64)
    fewest = reader.number("bits of a lane", 2 * LANE * LONGEST)
    width = reader.choice("bits that tell lanes apart", 2 * LONGEST)
    packed = reader.take(bits.size_bytes(lanes - 1, width), "bits of lanes")
    more = bits.unpack(packed, lanes - 1, width)
    return np.concatenate([[0], np.cumsum(more + fewest)])


def positions(gaps: Symbols) -> Ints:
    """Where the entries of a relative index are: each gap counts the zeros since the entry before (Han et al. 2016, section 2)."""
    found: Ints = np.cumsum(gaps.astype(np.int64) + 1) - 1
    return found
