"""Codes of 2 to 8 bits: q = clamp(round(w / scale) + zero), one scale for each group of inputs of an output. Pure arithmetic.

Symmetric: q in -2^(b-1) .. 2^(b-1)-1 and no zero point. Otherwise q in 0 .. 2^b - 1 and a whole zero point. Zero has an exact code in both, so
that pruned weights stay pruned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Tensor = torch.Tensor

_SHRINKS = 40
"""Ends of the range that are tried: from the extreme weight down to `_LEAST` of it."""
_LEAST = 0.3
_HALF_TINY = 2.0**-14
"""Below, float16 loses digits."""
_HALF_MAX = 65504.0


@dataclass(frozen=True)
class Grid:
    """What codes there are and how a scale is found."""

    bits: int
    symmetric: bool
    search: bool
    """Whether the end of the range is searched for the least squared error; else it is the extreme weight."""
    half: bool = False
    """Whether scales are numbers of float16."""

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def high(self) -> int:
        return self.low + (1 << self.bits) - 1


@dataclass(frozen=True)
class Scales:
    """Scales and zero points of groups: [...], for weights [..., group]. Zero is of whole numbers; 0 where the grid is symmetric."""

    scale: Tensor
    zero: Tensor


def fit(w: Tensor, worth: Tensor | None, grid: Grid) -> Scales:
    """Scales of groups.

    Args:
        w: Weights [..., group].
        worth: What a squared error at each weight counts, broadcast to w; null counts all alike.
        grid: Where codes can be.
    """
    best = _ending(w, 1.0, grid)
    if not grid.search:
        return best
    least = _cost(w, worth, best, grid)
    for shrink in torch.linspace(1.0, _LEAST, _SHRINKS).tolist()[1:]:
        tried = _ending(w, shrink, grid)
        cost = _cost(w, worth, tried, grid)
        better = cost < least
        least = torch.where(better, cost, least)
        best = Scales(
            torch.where(better, tried.scale, best.scale),
            torch.where(better, tried.zero, best.zero),
        )
    return best


def encode(w: Tensor, scales: Scales, grid: Grid) -> Tensor:
    """Codes of w [..., group], as floats of whole numbers."""
    q = torch.round(w / scales.scale.unsqueeze(-1)) + scales.zero.unsqueeze(-1)
    return q.clamp(grid.low, grid.high)


def decode(q: Tensor, scales: Scales) -> Tensor:
    """What codes [..., group] stand for."""
    return (q - scales.zero.unsqueeze(-1)) * scales.scale.unsqueeze(-1)


def rounded(w: Tensor, scales: Scales, grid: Grid) -> Tensor:
    """What the nearest codes stand for."""
    return decode(encode(w, scales, grid), scales)


def fits_half(w: Tensor, grid: Grid) -> bool:
    """Whether every scale that `fit` may choose for these groups keeps its digits in float16."""
    scale = _ending(w, 1.0, grid).scale[_spread(w) > 0]
    if not scale.numel():
        return True
    return bool(scale.min() * _LEAST >= _HALF_TINY and scale.max() <= _HALF_MAX)


def _spread(w: Tensor) -> Tensor:
    return w.abs().amax(-1)


def _ending(w: Tensor, shrink: float, grid: Grid) -> Scales:
    """Scales whose codes end at `shrink` of the extreme weights; 1 where all weights are zero."""
    top, bottom = w.amax(-1).clamp_min(0) * shrink, w.amin(-1).clamp_max(0) * shrink
    if grid.symmetric:
        scale = torch.maximum(top / grid.high, bottom / grid.low)
    else:
        scale = (top - bottom) / (grid.high - grid.low)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    if grid.half:
        scale = scale.half().to(w.dtype)
    zero = torch.zeros_like(scale) if grid.symmetric else torch.round(-bottom / scale)
    return Scales(scale, zero.clamp(grid.low, grid.high))


def _cost(w: Tensor, worth: Tensor | None, scales: Scales, grid: Grid) -> Tensor:
    squared = (rounded(w, scales, grid) - w).square()
    return (squared if worth is None else squared * worth).sum(-1)
