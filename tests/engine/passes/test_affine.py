from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.passes.quantize import _affine as affine
from workers.engine.passes.quantize import _ranges as ranges

finite = st.floats(-1e6, 1e6, width=32)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(st.lists(finite, min_size=1, max_size=50))
def test_activation_codes_are_idempotent_and_off_by_half_a_step_at_most(values):
    x = np.array(values, np.float32)
    codes = affine.activation(float(x.min()), float(x.max()))
    once = affine.decode(affine.encode(x, codes), codes)
    again = affine.decode(affine.encode(once, codes), codes)
    assert (once == again).all()
    slack = (
        1e-5 * np.abs(x).max()
    )  # the zero point is rounded too: a bound may lie half a step outside
    assert np.abs(once - x).max() <= codes.scale * 1.0 + slack
    inside = (x >= codes.scale * (0 - float(codes.zero))) & (
        x <= codes.scale * (255 - float(codes.zero))
    )
    assert np.abs(once - x)[inside].max(initial=0) <= codes.scale / 2 + slack


def test_zero_has_an_exact_code_whatever_the_range():
    for low, high in [(-1.0, 3.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0), (-1e-30, 1e-30)]:
        codes = affine.activation(low, high)
        zero = np.zeros(1, np.float32)
        assert affine.decode(affine.encode(zero, codes), codes) == 0


def test_a_rectified_range_uses_every_code():
    assert affine.activation(0.0, 6.0).zero == 0


@pytest.mark.parametrize("axis", [0, 1, 3, None])
@pytest.mark.parametrize("limit", [affine.FULL_RANGE, affine.REDUCED_RANGE])
def test_weights_are_off_by_half_a_step_of_their_channel(axis, limit):
    w = normal(8, 4, 3, 5) * np.logspace(-3, 2, 8, dtype=np.float32).reshape(8, 1, 1, 1)
    codes = affine.weight(w, axis, limit, None)
    assert np.abs(codes.codes.astype(int)).max() == limit
    step = (
        codes.scale
        if axis is None
        else codes.scale.reshape([-1 if i == axis else 1 for i in range(4)])
    )
    assert (np.abs(affine.decode_weight(codes) - w) <= step * 0.5001).all()
    again = affine.weight(affine.decode_weight(codes), axis, limit, None)
    assert (again.codes == codes.codes).all()


def test_noise_of_gaussian_weights_is_the_theoretical_one():
    w = normal(1, 200_000)
    codes = affine.weight(w, 0, affine.FULL_RANGE, None)
    noise = affine.decode_weight(codes) - w
    measured = 10 * np.log10((w**2).sum() / (noise**2).sum())
    theory = 10 * np.log10((w**2).mean() / (float(codes.scale[0]) ** 2 / 12))
    assert measured == pytest.approx(theory, abs=0.5)


def test_pruned_weights_and_whole_zero_channels_stay_zero():
    w = normal(4, 16)
    w[:, ::3] = 0
    w[2] = 0
    codes = affine.weight(w, 0, affine.FULL_RANGE, None)
    assert (codes.codes[w == 0] == 0).all()
    assert np.isfinite(codes.scale).all()
    assert (codes.scale > 0).all()


def test_a_large_bias_on_tiny_weights_widens_the_step_instead_of_overflowing():
    w = np.full((2, 8), 1e-12, np.float32)
    bias = np.array([50.0, 0.1], np.float32)
    scale = np.float32(1e-3)
    codes = affine.weight(w, 0, affine.FULL_RANGE, affine.scale_floor(bias, scale))
    q, units = affine.bias_codes(bias, scale, codes.scale)
    assert np.abs(q.astype(np.int64)).max() <= affine.BIAS_LIMIT * 1.001
    assert q * units.astype(np.float64) == pytest.approx(bias, rel=1e-6)


def test_minmax_spans_everything_seen():
    seen = ranges.MinMax()
    for part in np.split(np.linspace(-2, 5, 70, dtype=np.float32), 7):
        seen.add(part)
    assert seen.bounds() == (-2.0, 5.0)


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9, 100.0])
def test_percentile_agrees_with_numpy_to_a_bin(percent):
    values = normal(100_000)
    seen = ranges.Percentile(percent)
    for part in np.array_split(values, 13):
        seen.add(part)
    tail = (100 - percent) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    bin_width = 2 * 8 / 4096
    assert seen.bounds() == (pytest.approx(low, abs=bin_width), pytest.approx(high, abs=bin_width))


def test_percentile_leaves_an_outlier_out_and_does_not_depend_on_the_order():
    values = np.concatenate([normal(50_000), np.array([1e4], np.float32)])
    forward, backward = ranges.Percentile(99.99), ranges.Percentile(99.99)
    for part in np.array_split(values, 9):
        forward.add(part)
    for part in np.array_split(values[::-1], 9):
        backward.add(part)
    assert forward.bounds() == backward.bounds()
    assert forward.bounds()[1] < 20


def test_bounds_of_nothing_are_zero():
    for seen in (ranges.MinMax(), ranges.Percentile(99.0)):
        seen.add(np.zeros((0,), np.float32))
        seen.add(np.zeros((3,), np.float32))
        assert seen.bounds() == (0.0, 0.0)
