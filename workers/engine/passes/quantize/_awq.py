"""AWQ: inputs that see large activations get finer steps (Lin et al. 2024, arXiv 2306.00978, section 3.2).

    w x = (w * s) (x / s)        w^ = Q(w * s) / s        s = mean|x|^r, r of a grid of 20

An input whose weights are multiplied by s is rounded s times as finely, at the cost of the others that share its scale. r is chosen for the
least ||w^ X - w X|| with ranges that end at the extreme weights; then the range is searched. Differs in: the division by s stays with the weight, or with the layer's input; nothing before the layer is changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from workers.engine.passes.quantize import _error, _round
from workers.engine.passes.quantize._grid import Grid, Scales

Tensor = torch.Tensor
EXPONENTS = tuple(index / 20 for index in range(20))


@dataclass(frozen=True)
class Scaled:
    """The best of the grid."""

    codes: Tensor
    scales: Scales
    divisor: Tensor
    """1 / s of each column, numbers of float16: what decoded weights are multiplied by."""
    exponent: float


def solve(w: Tensor, h: Tensor, size: Tensor, grid: Grid, group: int) -> Scaled:
    """Codes of w [rows, columns] whose columns meet inputs of mean magnitude `size` [columns], with X X^T = h."""
    plain = replace(grid, search=False)
    tried = (_at(w, h, size, r, plain, group) for r in EXPONENTS)
    best = min(tried, key=lambda found: _error.of(w, _decoded(found, group), h))
    return _at(w, h, size, best.exponent, grid, group) if grid.search else best


def _at(w: Tensor, h: Tensor, size: Tensor, exponent: float, grid: Grid, group: int) -> Scaled:
    divisor = 1 / _factors(size, exponent)
    divisor = divisor.half().to(w.dtype)
    worth = h.diagonal() * divisor.square()
    codes, scales = _round.nearest(w / divisor, worth, grid, group)
    return Scaled(codes, scales, divisor, exponent)


def _factors(size: Tensor, exponent: float) -> Tensor:
    """s, its extremes at equal distance from 1; inputs that never were anything keep 1."""
    alive = size > 0
    s = torch.where(alive, size, 1.0).pow(exponent)
    known = s[alive]
    if not known.numel():
        return torch.ones_like(s)
    return torch.where(alive, s / (known.max() * known.min()).sqrt(), 1.0).clamp(1e-3, 1e3)


def _decoded(found: Scaled, group: int) -> Tensor:
    return _round.decoded(found.codes, found.scales, group) * found.divisor
