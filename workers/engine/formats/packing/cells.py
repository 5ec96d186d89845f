"""How a large alphabet is cut into cells: so that what is within them tells next to nothing, and few are left to be coded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from modelpress.packed import cells, contexts, maps
from modelpress.packed.cells import Cells, Even, Uneven
from workers.engine.formats.packing.numbers import packed_tails

FEW, MANY = 16, 32
"""Cells that are decoded fast enough even if they are uneven; that are, if they are even. Both are coded two at a time."""
SLOW_COSTS = 0.004
"""Share of the bits that is given to be decoded faster than more cells are."""
UNEVEN_COSTS = 0.0002
"""The same for even cells, whose bits are put together faster than those of uneven ones."""
_HALVINGS = 40
_ENOUGH = 1e-3

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def of(symbols: NDArray[np.integer], cut: Cells) -> NDArray[np.int32]:
    """The cell of each symbol."""
    if isinstance(cut, Uneven):
        sizes = 1 << np.array(cut.widths, np.int64)
        found: NDArray[np.int32] = np.repeat(np.arange(cut.count, dtype=np.int32), sizes)[symbols]
        return found
    assert isinstance(cut, Even), "cells are of one size or of several"
    return (symbols >> cut.low).astype(np.int32)


def low_bits(symbols: NDArray[np.integer], cut: Cells) -> bytes:
    """Where each symbol is in its cell, as modelpress.packed.cells reads it; what is left of the last byte is zero."""
    if isinstance(cut, Uneven):
        which = of(symbols, cut)
        inner = (symbols - cut.starts[which]).astype(np.uint64)
        return packed_tails(inner, np.array(cut.widths, np.int64)[which])
    assert isinstance(cut, Even), "cells are of one size or of several"
    return b"".join(_part(symbols, width, below) for width, below in cells.parts(cut.low))


def _part(symbols: NDArray[np.integer], width: int, below: int) -> bytes:
    padded = np.append(symbols, np.zeros(-len(symbols) % max(8 // width, 1), np.int32))
    return maps.join((padded >> below & (1 << width) - 1).astype(np.uint8), width)


def bits(symbols: NDArray[np.integer], cut: Even | Uneven) -> float:
    """Bits of symbols so cut, coded without contexts."""
    return _bits(_in_runs(symbols, cut.alphabet), cut)


def best(symbols: NDArray[np.integer], alphabet: int) -> Cells:
    """The cells that symbols are cut into: those of the fewest bits, but what takes a decoder longer must be worth it."""
    whole = Even(alphabet)
    if alphabet <= MANY:
        return whole
    runs = _in_runs(symbols, alphabet)
    tried = _candidates(runs.sum(axis=0), alphabet)
    return min(tried, key=lambda cut: _bits(runs, cut) * time(cut))


def _in_runs(symbols: NDArray[np.integer], alphabet: int) -> Ints:
    """How often each symbol comes in each run that a map without columns is coded in: [runs, symbols]."""
    runs = (symbols[run] for run in contexts.runs(len(symbols)))
    return np.array([np.bincount(run, minlength=alphabet) for run in runs])


def _bits(runs: Ints, cut: Even | Uneven) -> float:
    """Bits of symbols that come so often in each run: each run is coded by what those before it had."""
    if isinstance(cut, Uneven):
        starts, widths, table = cut.starts, np.array(cut.widths), cells.WIDTH_BITS * cut.count
    else:
        starts, widths, table = np.arange(cut.count) << cut.low, np.full(cut.count, cut.low), 0
    found = np.add.reduceat(runs, starts, axis=1)
    before = np.cumsum(found, axis=0) - found
    prices = [contexts.PRECISION - np.log2(contexts.frequencies(counts)) for counts in before]
    return float((found * prices).sum()) + float(found.sum(axis=0) @ widths) + table


def time(cut: Cells) -> float:
    """What a decoder's time for each symbol counts for, beside the bits."""
    uneven = isinstance(cut, Uneven)
    if cut.count > (FEW if uneven else MANY):
        return 1 + SLOW_COSTS
    return 1 + (UNEVEN_COSTS if uneven else 0.0)


def _candidates(counts: Ints, alphabet: int) -> Iterator[Even | Uneven]:
    for low in range(cells.MAX_LOW + 1):
        if alphabet >> low or not low:
            yield Even(alphabet, low)
    yield from (tree(counts, most) for most in (FEW, MANY))


def tree(counts: Ints, most: int) -> Uneven:
    """At most so many cells that keep the most of what the symbols, which come so often, tell: aligned halves of halves.

    A tree is pruned from its leaves: two cells become one where that costs less than `price` bits, which rises until few are left.
    """
    levels = _levels(counts)
    least, price = 0.0, float(counts.sum())
    for _ in range(_HALVINGS):
        tried = (least + price) / 2
        if len(_pruned(levels, tried)) > most:
            least = tried
        else:
            price = tried
        if price - least < _ENOUGH * price:
            break
    widths = _pruned(levels, price)
    sizes = np.cumsum(1 << np.array(widths, np.int64))
    needed = int(np.searchsorted(sizes, len(counts))) + 1
    return Uneven(len(counts), tuple(widths[:needed]))


def _levels(counts: Ints) -> list[Floats]:
    """Of the cells of each width, from 0 on: bits of their symbols beside the logarithm of all, if those within are equally likely."""
    size = 1 << max((len(counts) - 1).bit_length(), 1)
    sums = np.zeros(size, np.int64)
    sums[: len(counts)] = counts
    levels = []
    for width in range(cells.MAX_LOW + 1):
        levels.append(sums * (width - np.log2(np.maximum(sums, 1))))
        if len(sums) == 1:
            break
        sums = sums.reshape(-1, 2).sum(axis=1)
    return levels


def _pruned(levels: list[Floats], price: float) -> list[int]:
    """Widths of the cells, where each costs `price`."""
    costs, kept = levels[0] + price, []
    for whole in levels[1:]:
        halves = costs.reshape(-1, 2).sum(axis=1)
        kept.append(whole + price <= halves)
        costs = np.minimum(whole + price, halves)
    widths = np.full(len(costs), len(levels) - 1)
    for width in range(len(levels) - 2, -1, -1):
        widths = _split(widths, kept[width], width)
    return [int(width) for width in widths]


def _split(widths: Ints, kept: NDArray[np.bool_], width: int) -> Ints:
    """Cells one bit wider than `width` that are not kept become two."""
    ends = np.cumsum(1 << widths)
    starts = (ends - (1 << widths)) >> (width + 1)
    breaks = (widths == width + 1) & ~kept[starts]
    return np.repeat(widths - breaks, 1 + breaks)
