"""The arithmetic of quantize.bits: grids, GPTQ and AWQ against direct computations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from workers.engine.passes.quantize import _awq, _error, _gptq, _grid, _round
from workers.engine.passes.quantize._grid import Grid


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def seen(columns, seed=1):
    """X X^T of correlated inputs."""
    x = noise(columns, 3 * columns, seed=seed)
    mixed = x + 0.7 * x.roll(1, 0)
    return mixed @ mixed.T


GRIDS = [
    Grid(bits, symmetric, search)
    for bits, symmetric, search in itertools.product((2, 3, 4, 8), (True, False), (True, False))
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_codes_keep_their_bits_and_zero_stays_zero(grid):
    w = noise(5, 3, 16)
    w[:, :, ::3] = 0
    scales = _grid.fit(w, None, grid)
    codes = _grid.encode(w, scales, grid)
    assert codes.min() >= grid.low
    assert codes.max() < grid.low + 2**grid.bits
    back = _grid.decode(codes, scales)
    assert (back[:, :, ::3] == 0).all()
    assert torch.equal(_grid.rounded(back, scales, grid), back)


@pytest.mark.parametrize("symmetric", [True, False])
def test_no_weight_is_further_from_its_code_than_half_a_step(symmetric):
    w, grid = noise(20, 2, 8), Grid(4, symmetric, search=False)
    scales = _grid.fit(w, None, grid)
    gap = (_grid.rounded(w, scales, grid) - w).abs()
    assert (gap <= 0.5 * scales.scale.unsqueeze(-1) * (1 + 1e-9)).all()


def test_a_searched_range_has_the_smaller_error_and_minds_what_weighs_more():
    w, worth = noise(64, 1, 32), torch.ones(32, dtype=torch.float64)
    worth[:4] = 1000

    def cost(worth, **fitted):
        scales = _grid.fit(w, fitted.get("by"), Grid(3, True, fitted["search"]))
        gap = _grid.rounded(w, scales, Grid(3, True, True)) - w
        return float((gap.square() * worth).sum())

    assert cost(1.0, search=True) < 0.9 * cost(1.0, search=False)
    assert cost(worth, search=True, by=worth) < cost(worth, search=True)


def test_scales_are_numbers_of_float16_where_they_keep_their_digits():
    w = noise(4, 2, 8)
    assert _grid.fits_half(w, Grid(4, True, True))
    assert not _grid.fits_half(w * 1e-6, Grid(4, True, True))
    assert not _grid.fits_half(w * 1e6, Grid(4, True, True))
    scale = _grid.fit(w, None, Grid(4, True, True, half=True)).scale
    assert torch.equal(scale, scale.half().double())


def oracle(w, h, asked, scale_of):
    """Optimal brain quantization with a fixed order: the inverse of what is left is computed anew for each column."""
    w, codes = w.clone(), torch.zeros_like(w)
    h = h + asked.damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    order = h.diagonal().argsort(descending=True) if asked.by_size else torch.arange(len(h))
    for step, j in enumerate(order.tolist()):
        left = order[step:]
        inverse = torch.linalg.inv(h[left][:, left])
        scales = scale_of(w, j)
        codes[:, j : j + 1] = _grid.encode(w[:, j : j + 1], scales, asked.grid)
        gap = w[:, j] - _grid.decode(codes[:, j : j + 1], scales)[:, 0]
        w[:, left] -= gap.unsqueeze(1) * inverse[0] / inverse[0, 0]
    return codes


@pytest.mark.parametrize("by_size", [False, True])
@pytest.mark.parametrize("columns", [12, 160])
def test_gptq_is_optimal_brain_quantization_in_a_fixed_order(by_size, columns):
    w, h = noise(3, columns), seen(columns)
    asked = _gptq.Asked(Grid(3, True, True), columns, 0.01, by_size)
    scales = _grid.fit(w, h.diagonal(), asked.grid)
    codes, found = _gptq.solve(w, h, asked)
    assert torch.equal(found.scale[:, 0], scales.scale)
    assert torch.equal(codes, oracle(w, h, asked, lambda w, j: scales))


@pytest.mark.parametrize("group", [8, 24, 200])
def test_scales_of_a_group_see_what_was_made_good_before_it(group):
    w, h = noise(2, 208), seen(208)
    asked = _gptq.Asked(Grid(4, False, False), group, 0.01, by_size=False)
    of_groups = {}

    def scale_of(current, j):
        if j % group == 0:
            of_groups[j // group] = _grid.fit(
                current[:, j : j + group], h.diagonal()[j : j + group], asked.grid
            )
        return of_groups[j // group]

    codes, _ = _gptq.solve(w, h, asked)
    assert torch.equal(codes, oracle(w, h, asked, scale_of))


@pytest.mark.parametrize("by_size", [False, True])
def test_gptq_moves_outputs_less_than_rounding_to_nearest(by_size):
    w, h = noise(16, 64), seen(64)
    asked = _gptq.Asked(Grid(3, True, True), 16, 0.01, by_size)
    plain = _round.decoded(*_round.nearest(w, h.diagonal(), asked.grid, 16), 16)
    better = _round.decoded(*_gptq.solve(w, h, asked), 16)
    assert _error.of(w, better, h) < _error.of(w, plain, h)


def test_gptq_leaves_pruned_weights_at_zero_and_bears_dead_inputs():
    w, h = noise(8, 32), seen(32)
    w[w.abs() < 0.5] = 0
    h[3], h[:, 3] = 0, 0
    codes, scales = _gptq.solve(w, h, _gptq.Asked(Grid(4, False, True), 32, 0.01, False))
    back = _round.decoded(codes, scales, 32)
    assert torch.isfinite(back).all()
    assert (back[w == 0] == 0).all()


def test_awq_gives_inputs_with_large_activations_finer_steps():
    w, magnitude = noise(16, 64), torch.ones(64, dtype=torch.float64)
    magnitude[:3] = 30
    h = torch.diag(magnitude.square())
    grid = Grid(3, True, False)
    found = _awq.solve(w, h, magnitude, grid, 64)
    plain = _round.decoded(*_round.nearest(w, None, grid, 64), 64)
    scaled = _round.decoded(found.codes, found.scales, 64) * found.divisor
    assert found.exponent in _awq.EXPONENTS
    assert found.exponent > 0
    assert (found.divisor[:3] < found.divisor[3:].min()).all()
    assert _error.of(w, scaled, h) < 0.5 * _error.of(w, plain, h)
