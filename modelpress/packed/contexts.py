"""In which order the symbols of a map are coded, and with which frequencies: the same walk for encoder and decoder.

A map is a matrix. Its first row is coded in runs that double; then come the rows halfway between those that are known, then the rows
halfway between these, and so on, so that each pass has known rows above and below and about doubles what is known. Frequencies follow
from what was coded before, pass by pass; no table is stored. All arithmetic is on integers: every machine finds the same.

Contexts of a symbol, where the map is told to use them:
  neighbours   the known symbols above and below it
  columns      how far the known symbols of its column are from the centre, on average, beside those of the whole map
With `split`, first comes whether a symbol is the centre (the zero of a pruned network), then, for the others, which it is; there the
context is on which side of the centre the neighbours are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

PRECISION = 24
"""Frequencies add up to 2 to the power of this."""
FIRST_RUN = 64
FEW = 1024
"""Passes of fewer symbols have no contexts."""
_NEAR = (4, 12, 24)
_COLUMNS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 48)
"""Borders of classes, as sixteenths of the mean over the map."""

Ints = NDArray[np.int64]
Symbols = NDArray[np.int32]


class Layer(IntEnum):
    """What is coded: the symbols themselves, or whether one is the centre, or which it is if it is not."""

    SYMBOLS = 0
    IS_OTHER = 1
    OTHERS = 2


@dataclass(frozen=True)
class Layout:
    """How a map is coded."""

    columns: int = 0
    """Of the matrix; 0: the map is one row."""
    transposed: bool = False
    use_columns: bool = False
    use_neighbours: bool = False
    split: bool = False
    centre: int = 0

    @property
    def uses_contexts(self) -> bool:
        """Whether frequencies depend on more than the symbols."""
        return self.use_columns or self.use_neighbours


class Source(Protocol):
    """Where symbols come from: a decoder, or an encoder that knows them and notes the frequencies."""

    def begin(self, layer: Layer, rows: slice, columns: slice) -> None:
        """The symbols taken next are those of this part of the matrix; of OTHERS, those that are not the centre."""

    def take(self, at: slice | Ints, count: int, frequencies: Ints) -> Symbols:
        """`count` symbols, at these positions of the part read row by row."""


def walk(size: int, alphabet: int, layout: Layout, source: Source) -> Symbols:
    """Visits a map of `size` symbols below `alphabet`; answers them in the map's own order."""
    columns = layout.columns or max(size, 1)
    shape = (size // columns, columns)
    matrix = np.zeros(shape[::-1] if layout.transposed else shape, np.int32)
    _Walk(matrix, alphabet, layout, source).run()
    return np.ascontiguousarray(matrix.T if layout.transposed else matrix).reshape(-1)


def frequencies(counts: Ints) -> Ints:
    """Frequencies of symbols that came so often, all at least 1, their sum 2^PRECISION: [symbols]."""
    found: Ints = _to_precision((2 * counts + 1)[None])[0]
    return found


def frequencies_of(counts: Ints, totals: Ints) -> Ints:
    """The same for contexts, [contexts, symbols]: each begins as if it had seen four symbols of all that came before, `totals`."""
    seen = 2 * totals + 1
    return _to_precision(32 * counts + 128 * seen // int(seen.sum()) + 1)


def _to_precision(weights: Ints) -> Ints:
    """Shares out in proportion to the weights of each row; what is left over goes to its heaviest symbol, of several to the first."""
    free = (1 << PRECISION) - weights.shape[1]
    found: Ints = 1 + weights * free // weights.sum(axis=1, keepdims=True)
    rest = (1 << PRECISION) - found.sum(axis=1)
    found[np.arange(len(found)), np.argmax(found, axis=1)] += rest
    return found


class _Model:
    """Counts of the symbols of one layer, by context."""

    def __init__(self, contexts: int, alphabet: int) -> None:
        self.counts: Ints = np.zeros((contexts, alphabet), np.int64)
        self.totals: Ints = np.zeros(alphabet, np.int64)

    def code(self, source: Source, context: NDArray[np.uint8] | None, size: int) -> Symbols:
        """The symbols of a part; contexts in the part's own order, None: what is known of all symbols serves."""
        alphabet = len(self.totals)
        if alphabet == 1 or not size:
            return np.zeros(size, np.int32)
        if context is None:
            using = frequencies(self.totals)
            symbols = source.take(slice(0, size), size, using)
            self.totals += np.bincount(symbols, minlength=alphabet)
            return symbols
        return self._by_context(source, context)

    def _by_context(self, source: Source, context: NDArray[np.uint8]) -> Symbols:
        alphabet = len(self.totals)
        order = np.argsort(context, kind="stable")
        sizes = np.bincount(context, minlength=len(self.counts))
        ends = np.cumsum(sizes)
        using = frequencies_of(self.counts, self.totals)
        result = np.empty(len(context), np.int32)
        for chosen in np.flatnonzero(sizes):
            at = order[ends[chosen] - sizes[chosen] : ends[chosen]]
            symbols = source.take(at, len(at), using[chosen])
            result[at] = symbols
            found = np.bincount(symbols, minlength=alphabet)
            self.counts[chosen] += found
            self.totals += found
        return result


class _Walk:
    def __init__(self, matrix: Symbols, alphabet: int, layout: Layout, source: Source) -> None:
        self.matrix, self.layout, self.source = matrix, layout, source
        near = len(_NEAR) + 1 if layout.use_neighbours else 1
        wide = len(_COLUMNS) + 1 if layout.use_columns else 1
        self.near, coded = near, 2 if layout.split else alphabet
        self.first = _Model(near * wide, coded)
        self.others = _Model(3 if layout.use_neighbours else 1, max(alphabet - 1, 1))
        self.sums: Ints = np.zeros(matrix.shape[1], np.int64)
        self.rows = 0
        self.alphabet = alphabet

    def run(self) -> None:
        """Fills the matrix."""
        height, width = self.matrix.shape
        for run in _runs(width):
            self._part(slice(0, 1), run, None, None)
        self._learn(slice(0, 1))
        for half in _halves(height):
            rows = slice(half, height, 2 * half)
            above = self.matrix[0 : height - half : 2 * half]
            below = self.matrix[2 * half : height : 2 * half]
            below = np.concatenate([below, above[len(below) :]])
            self._part(rows, slice(0, width), above, below)
            self._learn(rows)

    def _learn(self, rows: slice) -> None:
        """Adds the distances from the centre to those of their columns."""
        if self.layout.use_columns:
            part = self.matrix[rows]
            self.sums += self._distance(part).sum(axis=0)
            self.rows += len(part)

    def _distance(self, part: Symbols) -> Ints:
        distance: Ints = part.astype(np.int64) - self.layout.centre
        away: Ints = np.abs(distance)
        return np.minimum(away, 1) if self.layout.split else away

    def _part(
        self, rows: slice, columns: slice, above: Symbols | None, below: Symbols | None
    ) -> None:
        part = self.matrix[rows, columns]
        context = None if above is None or below is None else self._context(above, below)
        layer = Layer.IS_OTHER if self.layout.split else Layer.SYMBOLS
        self.source.begin(layer, rows, columns)
        found = self.first.code(self.source, context, part.size)
        if self.layout.split:
            found = self._others(rows, columns, found, above, below)
        part[...] = found.reshape(part.shape)

    def _others(
        self,
        rows: slice,
        columns: slice,
        is_other: Symbols,
        above: Symbols | None,
        below: Symbols | None,
    ) -> Symbols:
        centre = self.layout.centre
        where = np.flatnonzero(is_other)
        context = None
        if above is not None and below is not None and len(self.others.counts) > 1:
            sides = np.sign(above - centre) + np.sign(below - centre)
            context = (1 + np.sign(sides.reshape(-1)[where])).astype(np.uint8)
        self.source.begin(Layer.OTHERS, rows, columns)
        found = self.others.code(self.source, context, len(where))
        result = np.full(is_other.shape, centre, np.int32)
        result[where] = found + (found >= centre)
        return result

    def _context(self, above: Symbols, below: Symbols) -> NDArray[np.uint8] | None:
        """The context of each symbol between two known rows; None where there are too few to tell contexts apart."""
        if above.size < FEW or len(self.first.counts) == 1:
            return None
        context = np.zeros(above.shape, np.uint8)
        if self.layout.use_columns:
            context += _classes(self.sums, self.rows)[None, :] * np.uint8(self.near)
        if self.layout.use_neighbours:
            context += self._nearness(above, below)
        return context.reshape(-1)

    def _nearness(self, above: Symbols, below: Symbols) -> NDArray[np.uint8]:
        if self.layout.split:
            centre = self.layout.centre
            others: NDArray[np.uint8] = (above != centre).astype(np.uint8)
            others += below != centre
            return others
        steps: Ints = np.arange(2 * self.alphabet, dtype=np.int64)
        centre = self.layout.centre
        mean = int((self.first.totals * np.abs(steps[: self.alphabet] - centre)).sum())
        seen = int(self.first.totals.sum())
        borders = np.array(_NEAR, np.int64)
        table = np.searchsorted(borders, steps * 8 * seen // max(mean, 1), "right").astype(np.uint8)
        found: NDArray[np.uint8] = table[self._distance(above) + self._distance(below)]
        return found


def _classes(sums: Ints, rows: int) -> NDArray[np.uint8]:
    """The class of each column, by its mean beside that of all."""
    total = int(sums.sum())
    if not total:
        return np.zeros(len(sums), np.uint8)
    # (sum + mean) / (rows + 1) over mean, in sixteenths; the mean is total / (rows * columns)
    elements = rows * len(sums)
    shares = (sums * elements + total) * 16 // ((rows + 1) * total)
    return np.searchsorted(np.array(_COLUMNS, np.int64), shares, "right").astype(np.uint8)


def _runs(width: int) -> Iterator[slice]:
    """Runs of the first row: each as long as all before it."""
    start, end = 0, min(FIRST_RUN, width)
    while start < width:
        yield slice(start, end)
        start, end = end, min(2 * end, width)


def _halves(height: int) -> Iterator[int]:
    """Distances of new rows from the known ones next to them, from the largest to 1."""
    half = 1 << max((height - 1).bit_length() - 1, 0)
    while half and height > 1:
        yield half
        half //= 2
