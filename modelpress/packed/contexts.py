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
FIRST_RUN = 16
FEW = 1024
"""Passes of fewer symbols have no contexts."""
MOST_SYMBOLS = 1024
"""Larger alphabets have no contexts: to keep frequencies for each would take a decoder long, whatever the symbols are."""
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


@dataclass(frozen=True)
class Place:
    """Symbols of a part of the matrix: of these columns, or of all; and of what they hold, read row by row, these positions, or all."""

    columns: Ints | None = None
    inner: Ints | None = None

    def of(self, part: Symbols) -> Symbols:
        """They themselves."""
        block = part if self.columns is None else part[:, self.columns]
        flat = block.reshape(-1)
        return flat if self.inner is None else flat[self.inner]


class Source(Protocol):
    """Where symbols come from: a decoder, or an encoder that knows them and notes the frequencies."""

    def begin(self, layer: Layer, rows: slice, columns: slice) -> None:
        """The symbols taken next are those of this part of the matrix; of OTHERS, those that are not the centre, as one row."""

    def take(self, place: Place, count: int, frequencies: Ints) -> Symbols:
        """`count` symbols, which go there."""


def walk(size: int, alphabet: int, layout: Layout, source: Source) -> Symbols:
    """Visits a map of `size` symbols below `alphabet`; answers them in the map's own order."""
    columns = layout.columns or max(size, 1)
    shape = (size // columns, columns)
    matrix = np.zeros(shape[::-1] if layout.transposed else shape, np.int32)
    _Walk(matrix, alphabet, layout, source).run()
    return np.ascontiguousarray(matrix.T if layout.transposed else matrix).reshape(-1)


def frequencies(counts: Ints) -> Ints:
    """Frequencies of symbols that came so often, all at least 1, their sum 2^PRECISION: [symbols]."""
    return share_out(2 * counts + 1)


def weights_of(counts: Ints, totals: Ints) -> Ints:
    """What frequencies are shared out by in contexts, [contexts, symbols]: each begins as if it had seen four symbols of `totals`."""
    seen = 2 * totals + 1
    return 32 * counts + 128 * seen // int(seen.sum()) + 1


def share_out(weights: Ints) -> Ints:
    """Shares out in proportion to the weights; what is left over goes to the heaviest symbol, of several to the first."""
    found: Ints = weights * ((1 << PRECISION) - len(weights))
    found //= int(weights.sum())
    found += 1
    found[int(found.argmax())] += (1 << PRECISION) - int(found.sum())
    return found


@dataclass(frozen=True)
class _Contexts:
    """The context of each symbol of a part, [rows, columns]: class of its column × `kinds` + nearness."""

    shape: tuple[int, int]
    kinds: int
    classes: NDArray[np.uint8] | None
    """Of each column; None: all are of class 0."""
    near: NDArray[np.uint8] | None
    """Of each symbol; None: all are 0."""

    def blocks(self) -> Iterator[tuple[int, Ints | None]]:
        """The columns of each class, and the first of its contexts."""
        if self.classes is None:
            yield 0, None
            return
        for value in np.unique(self.classes):
            yield int(value) * self.kinds, np.flatnonzero(self.classes == value)

    def places(self, columns: Ints | None) -> Iterator[tuple[int, Place, int]]:
        """Of these columns, the symbols of each nearness, and how many they are."""
        if self.near is None:
            width = self.shape[1] if columns is None else len(columns)
            yield 0, Place(columns), self.shape[0] * width
            return
        near = (self.near if columns is None else self.near[:, columns]).reshape(-1)
        for value in range(self.kinds):
            if len(inner := np.flatnonzero(near == value)):
                yield value, Place(columns, inner), len(inner)


class _Model:
    """Counts of the symbols of one layer, by context."""

    def __init__(self, contexts: int, alphabet: int) -> None:
        self.counts: Ints = np.zeros((contexts, alphabet), np.int64)
        self.totals: Ints = np.zeros(alphabet, np.int64)

    def code(
        self, source: Source, shape: tuple[int, int], contexts: _Contexts | None, *, learn: bool
    ) -> Symbols:
        """The symbols of a part, [rows, columns]. Without contexts, what is known of all symbols serves."""
        size = shape[0] * shape[1]
        if len(self.totals) == 1 or not size:
            return np.zeros(shape, np.int32)
        if contexts is None:
            symbols = source.take(Place(), size, frequencies(self.totals))
            if learn:
                self.totals += _count(symbols, len(self.totals))
            return symbols.reshape(shape)
        return self._by_context(source, contexts, learn=learn)

    def _by_context(self, source: Source, contexts: _Contexts, *, learn: bool) -> Symbols:
        weights = weights_of(self.counts, self.totals)
        result = np.empty(contexts.shape, np.int32)
        for first, columns in contexts.blocks():
            block = result if columns is None else np.empty((len(result), len(columns)), np.int32)
            flat = block.reshape(-1)
            for near, place, count in contexts.places(columns):
                symbols = source.take(place, count, share_out(weights[first + near]))
                flat[slice(None) if place.inner is None else place.inner] = symbols
                if learn:
                    found = _count(symbols, len(self.totals))
                    self.counts[first + near] += found
                    self.totals += found
            if columns is not None:
                result[:, columns] = block
        return result


def _count(symbols: Symbols, alphabet: int) -> Ints:
    """How often each symbol comes."""
    if alphabet == 2:
        ones = int(np.count_nonzero(symbols))
        return np.array([len(symbols) - ones, ones], np.int64)
    return np.bincount(symbols, minlength=alphabet)


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
        for run in runs(width):
            self._part(slice(0, 1), run, None, learn=height > 1 or run.stop < width)
        self._learn(slice(0, 1))
        for half in _halves(height):
            rows = slice(half, height, 2 * half)
            above = self.matrix[0 : height - half : 2 * half]
            below = self.matrix[2 * half : height : 2 * half]
            below = np.concatenate([below, above[len(below) :]])
            self._part(rows, slice(0, width), (above, below), learn=half > 1)
            if half > 1:
                self._learn(rows)

    def _learn(self, rows: slice) -> None:
        """Adds the distances from the centre to those of their columns."""
        if self.layout.use_columns:
            part = self.matrix[rows]
            self.sums += self._distance(part).sum(axis=0)
            self.rows += len(part)

    def _distance(self, part: Symbols) -> Ints:
        if self.layout.split:
            other: Ints = (part != self.layout.centre).astype(np.int64)
            return other
        distance: Ints = np.abs(part.astype(np.int64) - self.layout.centre)
        return distance

    def _part(
        self, rows: slice, columns: slice, around: tuple[Symbols, Symbols] | None, *, learn: bool
    ) -> None:
        part = self.matrix[rows, columns]
        layer = Layer.IS_OTHER if self.layout.split else Layer.SYMBOLS
        self.source.begin(layer, rows, columns)
        found = self.first.code(self.source, part.shape, self._contexts(around), learn=learn)
        if self.layout.split:
            self.source.begin(Layer.OTHERS, rows, columns)
            found = self._others(found, around, learn=learn)
        part[...] = found

    def _others(
        self, is_other: Symbols, around: tuple[Symbols, Symbols] | None, *, learn: bool
    ) -> Symbols:
        centre = self.layout.centre
        where = np.flatnonzero(is_other)
        contexts = None
        if around is not None and len(self.others.counts) > 1:
            above, below = (side.reshape(-1)[where] for side in around)
            sides = np.sign(np.sign(above - centre) + np.sign(below - centre))
            contexts = _Contexts((1, len(where)), 3, None, (1 + sides).astype(np.uint8)[None])
        found = self.others.code(self.source, (1, len(where)), contexts, learn=learn)[0]
        result = np.full(is_other.shape, centre, np.int32)
        result.reshape(-1)[where] = found + (found >= centre)
        return result

    def _contexts(self, around: tuple[Symbols, Symbols] | None) -> _Contexts | None:
        """Those of a part between two known ones; None where there are too few symbols to tell contexts apart."""
        if around is None or around[0].size < FEW or len(self.first.counts) == 1:
            return None
        classes = _classes(self.sums, self.rows) if self.layout.use_columns else None
        near = self._nearness(*around) if self.layout.use_neighbours else None
        height, width = around[0].shape
        return _Contexts((height, width), self.near, classes, near)

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


def runs(width: int) -> Iterator[slice]:
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
