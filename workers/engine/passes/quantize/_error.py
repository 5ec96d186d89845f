"""How far a layer's outputs move when its weights do, from the second moments of its inputs alone."""

from __future__ import annotations

import torch

Tensor = torch.Tensor
_TINY = 1e-30


def of(before: Tensor, after: Tensor, h: Tensor) -> float:
    """||(after - before) X||^2, summed over rows, where X X^T = h [columns, columns]."""
    moved = after - before
    return float(((moved @ h) * moved).sum())


def share(changed: float, whole: float) -> float:
    """The norm of a change over the norm of what was, from their squares."""
    return float((max(changed, 0.0) / max(whole, _TINY)) ** 0.5)
