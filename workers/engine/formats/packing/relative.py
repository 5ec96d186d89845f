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
    counts = np.asarray(sum(np.bincount(slab, minlength=alphabet) for slab in slabs), np.int64)
    zero = int(np.argmax(counts))
    gaps = np.concatenate([np.diff(np.flatnonzero(slab != zero), prepend=-1) - 1 for slab in slabs])
    lengths, often = np.unique(gaps, return_counts=True)
    tried = (_of(lengths, often, counts, zero, bits) for bits in range(1, codecs.MAX_GAP_BITS + 1))
    return min(tried, key=lambda index: index.size_bits)


def _of(lengths: Ints, often: Ints, counts: Ints, zero: int, bits: int) -> Index:
    """The index with gaps of so many bits: of gaps so long, that come so often, between symbols that come so often."""
    fillers = int((lengths >> bits) @ often)
    gap_counts = np.bincount(lengths & (1 << bits) - 1, often, 1 << bits).astype(np.int64)
    gap_counts[-1] += fillers
    entry_counts = counts.copy()
    entry_counts[zero] = fillers
    gap_code, entry_code = huffman.fit(gap_counts), huffman.fit(entry_counts)
    size = huffman.bits(gap_code, gap_counts) + huffman.bits(entry_code, entry_counts)
    return Index(bits, zero, gap_code, entry_code, size + 8 * (len(huffman.table(gap_code))))
