from __future__ import annotations

import heapq
import io
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpress.packed import huffman as decoding
from modelpress.packed.reading import PackedError, Reader
from tests.packed import making
from workers.engine.formats.packing import huffman, relative

few = settings(max_examples=40, derandomize=True, deadline=None)


def cost_of_tree(counts: list[int]) -> int:
    """Bits of Huffman's own tree, whose codes may have any length."""
    heap, cost = sorted(counts), 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        cost += joined
        heapq.heappush(heap, joined)
    return cost


def cost(lengths: np.ndarray, counts: list[int]) -> int:
    return int((lengths.astype(int) * np.array(counts)).sum())


@few
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=40))
def test_package_merge_without_a_limit_is_huffmans_tree(counts):
    assert cost(huffman.package_merge(np.array(counts)), counts) == cost_of_tree(counts)


@few
@given(st.lists(st.integers(1, 10_000), min_size=4, max_size=6), st.integers(3, 4))
def test_package_merge_is_the_best_code_of_limited_length(counts, longest):
    options = (
        lengths
        for lengths in itertools.product(range(1, longest + 1), repeat=len(counts))
        if sum(2.0**-n for n in lengths) <= 1
    )
    best = min(cost(np.array(lengths), counts) for lengths in options)
    lengths = huffman.package_merge(np.array(counts), longest)
    assert lengths.max() <= longest
    assert cost(lengths, counts) == best


def test_lengths_stay_limited_where_the_tree_is_deep():
    counts = np.array([1, 1] + [2**n for n in range(1, 40)])
    assert huffman.package_merge(counts).max() == decoding.LONGEST


@few
@given(st.lists(st.integers(0, 30), min_size=1, max_size=400))
def test_mean_length_is_at_least_the_entropy_and_less_than_a_bit_more(symbols):
    array = np.array(symbols)
    counts = np.bincount(array)
    bits = huffman.bits(huffman.fit(counts), counts)
    bound = making.entropy_bits(array)
    assert bound - 1e-6 <= bits < bound + len(symbols)


def roundtrip(symbols: np.ndarray, alphabet: int) -> np.ndarray:
    code = huffman.fit(np.bincount(symbols, minlength=alphabet))
    table = huffman.table(code)
    read = decoding.read(Reader(io.BytesIO(table), len(table)), alphabet)
    return decoding.Decoder(read).decode(huffman.encode(code, symbols), len(symbols))


@few
@given(st.lists(st.integers(0, 299), max_size=500), st.integers(300, 310))
def test_decoding_undoes_encoding(symbols, alphabet):
    array = np.array(symbols, np.int64)
    assert (roundtrip(array, alphabet) == array).all()


@pytest.mark.parametrize("alphabet", [1, 2, 65_536])
def test_decoding_undoes_encoding_for_alphabets_of_any_size(alphabet):
    symbols = np.random.default_rng(0).integers(0, alphabet, 100_000)
    assert (roundtrip(symbols, alphabet) == symbols).all()


def test_long_streams_of_skewed_symbols_come_back():
    symbols = making.pruned_map(500_000)
    assert (roundtrip(symbols, 17) == symbols).all()


def test_empty_alphabet_has_an_empty_stream():
    assert len(roundtrip(np.zeros(0, np.int64), 5)) == 0


@pytest.mark.parametrize("change", [b"", b"\0"])
def test_stream_of_another_length_is_refused(change):
    symbols = making.pruned_map(1000)
    code = huffman.fit(np.bincount(symbols))
    stream = huffman.encode(code, symbols)
    wrong = stream + change if change else stream[:-1]
    with pytest.raises(PackedError):
        decoding.Decoder(code).decode(wrong, len(symbols))


@pytest.mark.parametrize("lengths", [[1, 1, 1], [2, 2], [1, 2], [1]])
def test_lengths_of_no_complete_code_are_refused(lengths):
    with pytest.raises(PackedError, match="complete"):
        decoding.Code(np.array(lengths, np.uint8))


BITS = 3
LARGEST = (1 << BITS) - 1


def of_gaps(*gaps: int, after: int = 0) -> np.ndarray:
    """A map with an entry 1 behind each gap of zeros, and zeros after the last."""
    parts = [np.append(np.zeros(gap, np.int64), 1) for gap in gaps]
    return np.concatenate([*parts, np.zeros(after, np.int64)])


@pytest.mark.parametrize(
    ("symbols", "entries"),
    [
        (of_gaps(0, 0, 5), 3),
        (of_gaps(LARGEST), 1),
        (of_gaps(LARGEST + 1), 2),  # a filler
        (of_gaps(2 * (LARGEST + 1)), 3),
        (of_gaps(1, after=1), 1),
        (of_gaps(0, after=50), 1),
        (of_gaps(after=9), 0),
    ],
)
def test_relative_index_comes_back_and_its_padding_is_counted(symbols, entries):
    gaps, values = relative.split(symbols, 0, BITS)
    assert len(gaps) == len(values) == entries
    assert gaps.max(initial=0) <= LARGEST
    found = np.zeros(len(symbols), np.int64)
    found[decoding.positions(gaps)] = values
    assert (found == symbols).all()


def test_relative_index_beats_a_code_of_whole_bits_on_a_pruned_map():
    symbols = making.pruned_map(100_000)
    counts = np.bincount(symbols, minlength=17)
    index = relative.fit([symbols], 17)
    assert index.size_bits < 0.7 * huffman.bits(huffman.fit(counts), counts)
