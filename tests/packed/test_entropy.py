from __future__ import annotations

import io
import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpress.packed import contexts, entropy
from modelpress.packed.cells import Even, Uneven
from modelpress.packed.contexts import Layout
from modelpress.packed.reading import PackedError, Reader
from tests.packed import making
from workers.engine.formats.packing import cells, choice, layouts
from workers.engine.formats.packing import container as packing

few = settings(max_examples=30, derandomize=True, deadline=None)
ALPHABET = 9
PLAIN = Layout()


def roundtrip(symbols: np.ndarray, alphabet: int, layout: Layout = PLAIN) -> np.ndarray:
    code = layouts.encode(symbols, alphabet, layout)
    return entropy.decode(code, len(symbols), alphabet, layout)


@few
@given(st.lists(st.integers(0, 40), max_size=600))
def test_decoding_undoes_encoding(symbols):
    array = np.array(symbols, np.int64)
    assert (roundtrip(array, 41) == array).all()


ALL = [
    Layout(columns, *flags, centre)
    for columns in (1, 7, 60, 600)
    for flags in itertools.product((False, True), repeat=4)
    for centre in (0, 4)
]


@pytest.mark.parametrize("layout", ALL, ids=str)
def test_decoding_undoes_encoding_in_every_layout(layout):
    rng = np.random.default_rng(0)
    symbols = np.where(rng.random(4200) < 0.7, 4, rng.integers(0, ALPHABET, 4200))
    assert (roundtrip(symbols, ALPHABET, layout) == symbols).all()


@pytest.mark.parametrize("alphabet", [2, 65_536])
def test_decoding_undoes_encoding_for_alphabets_of_any_size(alphabet):
    symbols = np.random.default_rng(0).integers(0, alphabet, 20_000)
    assert (roundtrip(symbols, alphabet) == symbols).all()


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65])
def test_short_maps_come_back(size):
    symbols = making.pruned_map(size)
    assert (roundtrip(symbols, 17) == symbols).all()


@few
@given(st.lists(st.integers(0, 2**20), min_size=1, max_size=50), st.data())
def test_frequencies_are_whole_and_none_is_zero(counts, data):
    array = np.array(counts)
    of_context = data.draw(st.lists(st.just(0) | st.integers(0, 2**20), min_size=1, max_size=1))
    for found in (
        contexts.frequencies(array),
        contexts.share_out(contexts.weights_of(array[None] // (1 + of_context[0]), array)[0]),
    ):
        assert found.sum() == 1 << contexts.PRECISION
        assert found.min() >= 1


def test_constriction_takes_the_frequencies_as_they_are():
    """The price that constriction asks is that of the frequencies, to a word."""
    counts = np.array([1, 10, 1000, 3, 0, 77])
    frequencies = contexts.frequencies(counts)
    model = entropy.model(frequencies)
    coder = entropy.constriction.stream.stack.AnsCoder()
    symbols = np.repeat(np.arange(6), 400).astype(np.int32)
    coder.encode_reverse(symbols, model)
    expected = 400 * (contexts.PRECISION - np.log2(frequencies)).sum()
    assert coder.num_valid_bits() == pytest.approx(expected, abs=33)


def peaked(share: float, alphabet: int) -> np.ndarray:
    return np.array([1 - share] + [share / (alphabet - 1)] * (alphabet - 1))


def normal(alphabet: int) -> np.ndarray:
    density = np.exp(-(np.linspace(-3, 3, alphabet) ** 2) / 2)
    return density / density.sum()


MAPS = {
    "pruned, 17 values": peaked(0.08, 17),
    "a bit, one of ten": peaked(0.1, 2),
    "a bit, one of two": peaked(0.5, 2),
    "4 bits, normal": normal(16),
    "8 bits, normal": normal(256),
    "5 bits, uniform": peaked(31 / 32, 32),
}


@pytest.mark.parametrize("shares", MAPS.values(), ids=MAPS.keys())
def test_code_with_all_it_needs_is_within_a_hundredth_of_the_bound(shares, record_property):
    """Nothing is beside it: frequencies follow from the symbols."""
    symbols = np.random.default_rng(1).choice(len(shares), 120_000, p=shares)
    code = layouts.encode(symbols, len(shares), Layout())
    bound = making.entropy_bits(symbols)
    assert 8 * len(code) <= 1.01 * bound
    share = 8 * len(code) / bound
    record_property(
        "figure", f"{len(shares)} symbols, {bound / 120_000:.3f} bit each: x{share:.4f}"
    )


def columns_that_differ(rows: int, columns: int) -> np.ndarray:
    """A pruned matrix in which some inputs keep far more weights than others."""
    rng = np.random.default_rng(0)
    density = rng.choice([0.005, 0.05, 0.4], columns)
    return np.where(rng.random((rows, columns)) < density, 1, 0).reshape(-1)


def smooth(rows: int, columns: int) -> np.ndarray:
    """A matrix whose neighbours are alike."""
    walk = np.random.default_rng(0).normal(0, 0.4, (rows, columns)).cumsum(axis=0)
    return (np.rint(walk).astype(np.int64) % 8).reshape(-1)


@pytest.mark.parametrize(
    ("symbols", "alphabet", "columns", "use"),
    [
        (columns_that_differ(300, 400), 2, 400, "use_columns"),
        (smooth(300, 400), 8, 400, "use_neighbours"),
    ],
)
def test_contexts_go_below_the_bound_where_they_know_more(symbols, alphabet, columns, use):
    layout = layouts.best(symbols, alphabet, [columns])
    assert getattr(layout, use)
    code = layouts.encode(symbols, alphabet, layout)
    assert 8 * len(code) < 0.95 * making.entropy_bits(symbols)
    assert (entropy.decode(code, len(symbols), alphabet, layout) == symbols).all()


def test_contexts_are_left_out_where_they_save_nothing():
    symbols = making.pruned_map(60_000)
    assert not layouts.best(symbols, 17, [200]).uses_contexts


def test_estimate_is_the_size_of_the_code():
    symbols = making.pruned_map(60_000)
    for layout in (Layout(), Layout(200, False, True, True, True, 8)):
        code = layouts.encode(symbols, 17, layout)
        assert 8 * len(code) == pytest.approx(layouts.bits(symbols, 17, layout), abs=40)


@pytest.mark.parametrize("added", [b"\1\2\3\4\5", b"\0"])
def test_code_that_no_encoder_leaves_is_refused(added):
    code = layouts.encode(making.pruned_map(5000), 17, PLAIN)
    with pytest.raises(PackedError, match="entropy code"):
        entropy.decode(code + added, 5000, 17, PLAIN)


@pytest.mark.parametrize("alphabet", [2, 3, 5, 16, 32, 33])
@pytest.mark.parametrize("over", [-1, 0, 1, 7])
def test_symbols_that_are_coded_several_at_a_time_come_back(alphabet, over):
    """At the border, and with some left that fill no group."""
    symbols = np.random.default_rng(over + 1).integers(0, alphabet, 4 * entropy.JOINED_FROM + over)
    assert (roundtrip(symbols, alphabet) == symbols).all()


@pytest.mark.parametrize(("alphabet", "several"), [(2, 8), (4, 4), (16, 2), (32, 2), (33, 1)])
def test_frequencies_of_several_symbols_are_the_products(alphabet, several):
    assert entropy.joined(alphabet, entropy.JOINED_FROM) == several
    one = contexts.frequencies(np.arange(alphabet) * 100)
    found = entropy.of_several(one, several)
    assert found.sum() == 1 << contexts.PRECISION
    assert found.min() >= 1
    shares = one / one.sum()
    expected = np.prod(shares[entropy.digits(alphabet, several)], axis=1)
    assert found / found.sum() == pytest.approx(expected, abs=1e-4)


def test_low_bits_that_tell_nothing_are_stored_as_they_are():
    rng = np.random.default_rng(0)
    symbols = (rng.normal(128, 20, 120_000).clip(0, 255).astype(int) & ~7) | rng.integers(0, 8)
    assert cells.best(symbols, 256) != Even(256, 3)  # they are always the same
    noise = symbols & ~7 | rng.integers(0, 8, len(symbols))
    assert cells.best(noise, 256) == Even(256, 3)
    array = noise.astype(np.uint8)
    code = making.section(array, "entropy")
    assert 8 * len(code) <= 1.01 * making.entropy_bits(noise)
    assert making.contents(code, array.nbytes) == array.tobytes()


CUTS = [
    *(Even(90, low) for low in range(7)),
    Even(40_000, 15),
    Uneven(90, (0, 0, 1, 2, 3, 4, 5, 5)),
    Uneven(90, (6, 6)),
    Uneven(40_000, (15, 0, 13)),
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("size", [0, 1, 2, 70_001])
def test_symbols_come_back_from_cells(cut, size):
    symbols = np.random.default_rng(0).integers(0, cut.alphabet, size)
    low = cells.low_bits(symbols, cut)
    reader = Reader(io.BytesIO(low), len(low))
    assert (cut.decode(reader, cells.of(symbols, cut)) == symbols).all()
    assert not reader.left


def zipf(alphabet: int) -> np.ndarray:
    shares = 1 / np.arange(1, alphabet + 1)
    return shares / shares.sum()


def test_alphabet_whose_neighbours_are_about_as_frequent_is_cut_into_few_cells():
    symbols = np.random.default_rng(0).choice(4096, 120_000, p=zipf(4096))
    cut = cells.best(symbols, 4096)
    assert isinstance(cut, Uneven)
    assert cut.count <= cells.FEW
    assert cells.bits(symbols, cut) < layouts.bits(symbols, 4096, PLAIN)


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_bits_of_a_cut_are_those_of_its_cells_coded_and_of_what_is_within_them(cut):
    symbols = np.minimum(np.random.default_rng(0).geometric(0.1, 5000), cut.alphabet) - 1
    coded = layouts.bits(cells.of(symbols, cut), cut.count, PLAIN)
    widths = np.array(cut.widths if isinstance(cut, Uneven) else [cut.low] * cut.count)
    table = 4 * cut.count if isinstance(cut, Uneven) else 0
    inside = int(widths[cells.of(symbols, cut)].sum())
    assert cells.bits(symbols, cut) == pytest.approx(coded + inside + table, rel=1e-9)


def test_tree_keeps_what_tells_symbols_apart():
    counts = np.array([900, 100, 50, 50, 10, 10, 10, 10])
    assert cells.tree(counts, 4).widths == (0, 0, 1, 2)
    assert cells.tree(counts, 1).widths == (3,)


@pytest.mark.parametrize("widths", [(0,), (1, 1, 1), (0, 0), (2, 2)])
def test_cells_that_do_not_fit_their_alphabet_are_refused(widths):
    with pytest.raises(PackedError, match="cells do not cover"):
        Uneven(3, widths)


SHARES = {
    "flat": lambda alphabet: np.full(alphabet, 1 / alphabet),
    "normal": normal,
    "zipf": zipf,
    "zipf in no order": lambda k: np.random.default_rng(5).permutation(zipf(k)),
    "one of a hundred": lambda alphabet: peaked(0.01, alphabet),
    "half": lambda alphabet: peaked(0.5, alphabet),
}
SIZES = [(alphabet, 100_000) for alphabet in (2, 256, 4096, 65_536)] + [(17, 300_000)]


@pytest.mark.parametrize(("alphabet", "size"), SIZES)
@pytest.mark.parametrize("name", SHARES)
def test_maps_of_any_alphabet_are_within_a_hundredth_of_what_any_coder_needs(name, alphabet, size):
    """n H0 and the regret, which no coder that does not know the frequencies can do without on all maps.

    The table of values is not counted, but how symbols are cut is.
    """
    drawn = np.random.default_rng(1).choice(alphabet, size, p=SHARES[name](alphabet))
    values, symbols = np.unique(drawn, return_inverse=True)
    array = values.astype(np.uint32) * 40_503  # too far apart to count up
    content = array[symbols].tobytes()
    plan, columns = choice.plan(content, ir.DataType.UINT32, (size,), "entropy")
    coded = len(packing.section(content, plan, columns)) - len(plan.codebook)
    least = making.entropy_bits(symbols) + making.regret_bits(len(values), size)
    assert 8 * coded <= 1.01 * least + 8 * OVERHEAD


OVERHEAD = 12
"""Bytes of a section that come before any code: columns, codec, how many values, flags, length of the code, and its last word."""
