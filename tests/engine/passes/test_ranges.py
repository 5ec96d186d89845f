"""Calibration that looks at how values are distributed."""

from __future__ import annotations

import numpy as np
import pytest

from workers.engine.passes.quantize import _affine, _ranges
from workers.engine.passes.quantize._histogram import BINS, Histogram


def normal(size=400_000, seed=0):
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def bounds(range_, values, parts=7):
    for part in np.array_split(values, parts):
        range_.add(part)
    return range_.bounds()


def sqnr(values, low, high):
    codes = _affine.activation(low, high)
    noise = _affine.decode(_affine.encode(values, codes), codes) - values
    return 10 * np.log10((values**2).sum() / (noise**2).sum())


def test_least_squared_error_reaches_the_best_uniform_quantizer_of_a_gaussian(record_property):
    """40.57 dB with 256 codes: the least of the integral of the squared error over all steps."""
    values = normal()
    reached = sqnr(values, *bounds(_ranges.SquaredError(symmetric=False), values))
    minmax = sqnr(values, float(values.min()), float(values.max()))
    record_property("figure", f"int8 of a Gaussian: mse {reached:.2f} dB, minmax {minmax:.2f} dB")
    assert reached == pytest.approx(40.57, abs=0.2)
    assert reached > minmax + 1


@pytest.mark.parametrize("kind", [_ranges.SquaredError, _ranges.Entropy])
def test_ranges_are_found_up_to_the_largest_float(kind):
    values = normal(10_000) * np.float32(8e37)
    low, high = bounds(kind(symmetric=False), values)
    assert values.min() <= low < 0 < high <= values.max()


@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_cuts_an_outlier_and_a_rectified_range_begins_at_zero(symmetric):
    values = np.maximum(np.append(normal(100_000), np.float32(60)), 0)
    low, high = bounds(_ranges.Entropy(symmetric=symmetric), values)
    assert low == 0
    assert 2 < high < 20


def test_squared_error_finds_the_best_end_of_a_rectified_range():
    values = np.maximum(np.random.default_rng(0).laplace(size=400_000), 0).astype(np.float32)
    low, high = bounds(_ranges.SquaredError(symmetric=False), values)
    assert low == 0
    tried = [sqnr(values, 0, float(values.max()) * part) for part in np.arange(1, 33) / 32]
    assert sqnr(values, low, high) > max(tried) - 0.1
    assert high < 0.9 * values.max()


def test_entropy_cuts_next_to_nothing_though_a_background_leaves_spikes():
    rng = np.random.default_rng(0)
    spikes = np.repeat([0.11, 0.23, 0.31, 0.42], 20_000).astype(np.float32)
    values = np.concatenate([spikes, np.abs(rng.normal(size=40_000)).astype(np.float32)])
    _, high = bounds(_ranges.Entropy(symmetric=False), values)
    assert (values > high).mean() <= 0.001


@pytest.mark.parametrize("make", [_ranges.SquaredError, _ranges.Entropy])
def test_values_that_fill_their_range_evenly_keep_all_of_it(make):
    values = np.random.default_rng(0).uniform(-1, 3, 200_000).astype(np.float32)
    low, high = bounds(make(symmetric=False), values)
    assert low == pytest.approx(-1, abs=0.05)
    assert high == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("make", [_ranges.SquaredError, _ranges.Entropy])
def test_the_order_of_batches_does_not_matter(make):
    values = np.append(normal(20_000), np.float32(1e3))
    assert bounds(make(symmetric=False), values) == bounds(make(symmetric=False), values[::-1])


@pytest.mark.parametrize("make", [_ranges.SquaredError, _ranges.Entropy])
def test_nothing_and_zeros_have_no_range(make):
    for values in (np.zeros(0, np.float32), np.zeros(9, np.float32)):
        assert bounds(make(symmetric=False), values, parts=1) == (0.0, 0.0)


def test_squared_error_cuts_each_end_for_itself():
    values = np.concatenate([normal(50_000), -np.random.default_rng(1).uniform(0, 30, 50_000)])
    low, high = bounds(_ranges.SquaredError(symmetric=False), values.astype(np.float32))
    assert low == pytest.approx(-30, abs=0.5)
    assert high < 4.5


def test_divergence_is_that_of_the_definition():
    p, q = np.array([4.0, 2.0, 2.0]), np.array([1.0, 1.0, 2.0])
    wanted = 0.5 * np.log(0.5 / 0.25) + 0.25 * np.log(0.25 / 0.25) + 0.25 * np.log(0.25 / 0.5)
    assert _ranges._divergence(p, q) == pytest.approx(wanted)


def test_merged_bins_share_what_their_group_has_and_empty_ones_stay_empty():
    counts = np.array([4.0, 0.0, 2.0, 6.0])
    assert _ranges._merged(counts, 2).tolist() == [4.0, 0.0, 4.0, 4.0]


def test_a_histogram_counts_everything_once_in_constant_memory():
    seen = Histogram()
    for size in (1.0, 50.0, 3.0, 7000.0):
        seen.add(normal(1000) * np.float32(size))
    seen.add(np.zeros(10, np.float32))
    assert seen.counts.sum() == 4010
    assert seen.counts.size == BINS
    assert seen.zeros == 10
    assert seen.without_zeros.sum() == 4000
    assert seen.reach < 2 * max(-seen.low, seen.high)
