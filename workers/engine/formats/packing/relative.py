"""Deep Compression's relative index: gaps between the entries that are not zero (Han et al. 2016, arXiv 1510.00149, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelpress.packed import codecs
from modelpress.packed.huffman import Code
from workers.engine.formats.packing import huffman

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Index:
    """Bits of a gap, which symbol is the zero, and the codes of gaps and entries."""

    bits: int
    zero: int
    gaps: Code
    entries: Code
    size_bits: float
    """Of gaps and entries, tables not counted."""


def split(symbols: NDArray[np.integer], zero: int, bits: int) -> tuple[Ints, Ints]:
    """Gaps and entries: before an entry that is too far away come zeros, each behind the longest gap."""
    where = np.flatnonzero(symbols != zero)
    gaps = np.diff(where, prepend=-1) - 1
    fillers = gaps >> bits
    ends = np.cumsum(fillers + 1) - 1
    size = int(ends[-1]) + 1 if len(ends) else 0
    all_gaps = np.full(size, (1 << bits) - 1, np.int64)
    entries = np.full(size, zero, np.int64)
    all_gaps[ends] = gaps & ((1 << bits) - 1)
    entries[ends] = symbols[where]
    return all_gaps, entries


def fit(slabs: Sequence[NDArray[np.integer]], alphabet: int) -> Index:
    """The index of the fewest bits for the slabs of a map; its commonest symbol is the zero."""
    counts = sum(np.bincount(slab, minlength=alphabet) for slab in slabs)
    zero = int(np.argmax(counts))
    tried = (_with(slabs, alphabet, zero, bits) for bits in range(1, codecs.MAX_GAP_BITS + 1))
    return min(tried, key=lambda index: index.size_bits)


def _with(slabs: Sequence[NDArray[np.integer]], alphabet: int, zero: int, bits: int) -> Index:
    gap_counts = np.zeros(1 << bits, np.int64)
    entry_counts = np.zeros(alphabet, np.int64)
    for slab in slabs:
        gaps, entries = split(slab, zero, bits)
        gap_counts += np.bincount(gaps, minlength=1 << bits)
        entry_counts += np.bincount(entries, minlength=alphabet)
    gap_code, entry_code = huffman.fit(gap_counts), huffman.fit(entry_counts)
    size = huffman.bits(gap_code, gap_counts) + huffman.bits(entry_code, entry_counts)
    return Index(bits, zero, gap_code, entry_code, size + 8 * (len(huffman.table(gap_code))))
