"""How far a layer's outputs move when its weights do, from the second moments of its inputs alone."""

from __future__ import annotations

import torch

from workers.engine.passes._moments import Moments

Tensor = torch.Tensor
_TINY = 1e-30


def of(before: Tensor, after: Tensor, h: Tensor) -> float:
    """||(after - before) X||^2, summed over rows, where X X^T = h [columns, columns]."""
    moved = after - before
    return float(((moved @ h) * moved).sum())


def of_outputs(before: Tensor, after: Tensor, moments: Moments, group: int) -> float:
    """||after X - before X'||^2, summed over rows: X of what the layer multiplies, X' of what it multiplies in the float network."""
    now = ((after @ moments.h[group]) * after).sum()
    both = ((before @ moments.cross[group]) * after).sum()
    return float(now - 2 * both + ((before @ moments.exact[group]) * before).sum())


def share(changed: float, whole: float) -> float:
    """The norm of a change over the norm of what was, from their squares."""
    return float((max(changed, 0.0) / max(whole, _TINY)) ** 0.5)
