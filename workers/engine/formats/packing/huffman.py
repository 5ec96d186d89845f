"""Canonical Huffman codes of limited length: lengths by package-merge, which is optimal (Larmore, Hirschberg 1990)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelpress.packed.huffman import LONGEST, Code, lanes_of
from workers.engine.formats.packing.numbers import number, packed

_CHUNK = 1 << 16
Ints = NDArray[np.int64]


def fit(counts: Ints) -> Code:
    """The best code for symbols that come so often; those that never come have none."""
    lengths = np.zeros(len(counts), np.uint8)
    used = np.flatnonzero(counts)
    if len(used) < 2:
        return Code(lengths, int(used[0]) if len(used) else 0)
    lengths[used] = package_merge(counts[used])
    return Code(lengths)


def package_merge(weights: Ints, longest: int = LONGEST) -> NDArray[np.uint8]:
    """Lengths of the best prefix code of at most `longest` bits for at least two symbols.

    Each level holds the leaves and the packages, pairs of the level below, by weight. The code takes the 2n - 2 lightest items of the
    last level; what of them is a package takes two of the level below, and each time a leaf is taken its code grows by a bit.
    """
    assert 2 <= len(weights) <= 1 << longest, "so many symbols have a code of that length"
    order = np.argsort(weights, kind="stable")
    leaves = weights[order].astype(np.int64)
    levels = _levels(leaves, longest)
    lengths = np.zeros(len(weights), np.uint8)
    taken = 2 * len(leaves) - 2
    for is_leaf in reversed(levels):
        chosen = int(is_leaf[:taken].sum())
        lengths[order[:chosen]] += 1
        taken = 2 * (taken - chosen)
    return lengths


def _levels(leaves: Ints, longest: int) -> list[NDArray[np.bool_]]:
    """For each level, from the first on, which of its items by weight are leaves."""
    levels, packages = [], np.zeros(0, np.int64)
    for _ in range(longest):
        items = np.concatenate([leaves, packages])
        ranked = np.argsort(items, kind="stable")
        levels.append(ranked < len(leaves))
        items = items[ranked]
        packages = items[: len(items) // 2 * 2].reshape(-1, 2).sum(axis=1)
    return levels


def bits(code: Code, counts: Ints) -> int:
    """Bits of a stream of symbols that come so often."""
    return int((code.lengths.astype(np.int64) * counts).sum())


def table(code: Code) -> bytes:
    """The code as it is stored: which symbols have one, where not all do, then lengths less one, two to a byte."""
    used = code.lengths > 0
    if code.only >= 0:
        used = np.arange(len(code.lengths)) == code.only
    form = b"\0" if used.all() else b"\1" + np.packbits(used, bitorder="little").tobytes()
    if code.only >= 0:
        return form
    lengths = code.lengths[used] - 1
    halves = np.append(lengths, np.zeros(len(lengths) % 2, np.uint8)).reshape(-1, 2)
    return form + (halves[:, 0] | halves[:, 1] << 4).astype(np.uint8).tobytes()


def encode(code: Code, symbols: NDArray[np.integer]) -> bytes:
    """The stream that modelpress.packed.huffman decodes: the bits of each lane, then the lanes one behind the other."""
    if code.only >= 0 or not len(symbols):
        return b""
    count = lanes_of(len(symbols))
    order = np.concatenate([np.arange(lane, len(symbols), count) for lane in range(count)])
    by_lane = symbols[order]
    lengths, codes = code.lengths.astype(np.int64), code.codes
    parts = [
        _bits(codes[part], lengths[part])
        for part in (by_lane[i : i + _CHUNK] for i in range(0, len(by_lane), _CHUNK))
    ]
    sizes = np.bincount(np.arange(len(symbols)) % count, lengths[symbols]).astype(np.int64)
    return _sizes(sizes[:-1]) + np.packbits(np.concatenate(parts)).tobytes()


def _sizes(bits: Ints) -> bytes:
    """Of each lane but the last: the fewest, the width of what is more, and what is more, highest bit first."""
    if not len(bits):
        return b""
    fewest = int(bits.min())
    more = bits - fewest
    width = int(more.max()).bit_length()
    return number(fewest) + bytes([width]) + packed(more, width)


def _bits(codes: Ints, lengths: Ints) -> NDArray[np.uint8]:
    ends = np.cumsum(lengths)
    below = np.repeat(ends, lengths) - np.arange(ends[-1]) - 1
    return (np.repeat(codes, lengths) >> below & 1).astype(np.uint8)
