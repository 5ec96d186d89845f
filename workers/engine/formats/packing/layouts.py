"""Entropy encoding, and which contexts of a map save the most."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import constriction
import numpy as np
from numpy.typing import NDArray

from modelpress.packed import contexts, entropy
from modelpress.packed.contexts import Ints, Layer, Layout, Place, Symbols

SPLIT_FROM = 0.5
"""Share of its commonest symbol from which on a map may be split into that and the others."""

CONTEXTS_SAVE = 0.01
"""Share of the bits that contexts must save."""
SPLIT_COSTS = 0.002
"""Share of the bits that a split may cost, as it is decoded so much faster."""
SMALL = 16
"""Symbols of an alphabet up to which a split is decoded no faster: several of them are coded at a time."""


class _Known:
    """A source of symbols that are known."""

    def __init__(self, symbols: Symbols, layout: Layout) -> None:
        matrix = symbols.reshape(-1, layout.columns or max(len(symbols), 1))
        self._matrix = matrix.T if layout.transposed else matrix
        self._centre = layout.centre
        self._part: Symbols = np.zeros((0, 0), np.int32)

    def begin(self, layer: Layer, rows: slice, columns: slice) -> None:
        """Keeps the part as the layer has it."""
        part = self._matrix[rows, columns]
        if layer is Layer.IS_OTHER:
            part = (part != self._centre).astype(np.int32)
        elif layer is Layer.OTHERS:
            part = part[part != self._centre][None]
            part = part - (part > self._centre)
        self._part = part


class _Bits(_Known):
    """Adds up what coding costs."""

    bits = 0.0

    def take(self, place: Place, count: int, frequencies: Ints) -> Symbols:
        """The symbols, at their price."""
        symbols = place.of(self._part)
        counts = np.bincount(symbols, minlength=len(frequencies))
        self.bits += float(counts @ (contexts.PRECISION - np.log2(frequencies)))
        return symbols


class _Pushes(_Known):
    """Notes what is to be pushed."""

    def __init__(self, symbols: Symbols, layout: Layout) -> None:
        super().__init__(symbols, layout)
        self.noted: list[tuple[Symbols, Ints]] = []

    def take(self, place: Place, count: int, frequencies: Ints) -> Symbols:
        """The symbols, noted as they are coded: several at a time, then those that are left."""
        symbols = np.ascontiguousarray(place.of(self._part))
        alphabet = len(frequencies)
        several = entropy.joined(alphabet, count)
        whole = symbols[: count // several * several].reshape(-1, several)
        places = alphabet ** np.arange(several)[::-1]
        at_once = (whole @ places).astype(np.int32)
        self.noted.append((at_once, entropy.of_several(frequencies, several)))
        self.noted.append((symbols[whole.size :], frequencies))
        return symbols


def encode(symbols: NDArray[np.integer], alphabet: int, layout: Layout) -> bytes:
    """The code that modelpress.packed.entropy decodes."""
    known = symbols.astype(np.int32)
    pushes = _Pushes(known, layout)
    contexts.walk(len(known), alphabet, layout, pushes)
    coder = constriction.stream.stack.AnsCoder()
    for part, frequencies in reversed(pushes.noted):
        coder.encode_reverse(part, entropy.model(frequencies))
    code: bytes = coder.get_compressed().astype("<u4").tobytes()
    return code.rstrip(b"\0")


def bits(symbols: NDArray[np.integer], alphabet: int, layout: Layout) -> float:
    """Bits of that code, without making it."""
    source = _Bits(symbols.astype(np.int32), layout)
    contexts.walk(len(symbols), alphabet, layout, source)
    return source.bits


def best(symbols: NDArray[np.integer], alphabet: int, columns: Iterable[int]) -> Layout:
    """The layout of the fewest bits, found by trying; what takes a decoder longer must be worth it."""
    return min(
        _candidates(symbols, alphabet, columns),
        key=lambda layout: bits(symbols, alphabet, layout) * _time(layout, alphabet),
    )


def _time(layout: Layout, alphabet: int) -> float:
    """A decoder is fastest where several symbols are coded at a time, or most are one of two; slowest where it has contexts."""
    if layout.uses_contexts:
        return 1 + CONTEXTS_SAVE
    return 1 if layout.split == (alphabet > SMALL) else 1 + SPLIT_COSTS


def _candidates(
    symbols: NDArray[np.integer], alphabet: int, columns: Iterable[int]
) -> Iterator[Layout]:
    counts = np.bincount(symbols, minlength=alphabet)
    centre = int(np.argmax(counts))
    yield Layout()
    splits: tuple[bool, ...] = (False,)
    if alphabet > 2 and counts[centre] > SPLIT_FROM * len(symbols):
        yield Layout(split=True, centre=centre)
        splits = (False, True)
    if alphabet > contexts.MOST_SYMBOLS:
        return
    uses = ((True, False), (False, True), (True, True))
    for width, transposed, split, (sums, near) in itertools.product(
        columns, (False, True), splits, uses
    ):
        if 1 < width < len(symbols):
            yield Layout(width, transposed, sums, near, split, centre)
