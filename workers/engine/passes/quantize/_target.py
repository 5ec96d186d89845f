"""What to round where a layer's inputs are not those of the float network: asymmetric calibration (Li et al. 2025, arXiv 2504.02692).

x' -> W in the float network, x -> ~W behind layers that were rounded:    least ||~W x - W x'||^2

    T = W + W (x' x^T - x x^T) (x x^T + damping * mean(diag x x^T) * I)^-1

T gives the float network's outputs as well as x can, and is what GPTQ or AWQ then round. Differs in: the paper moves what x lacks within GPTQ,
column by column; here T is solved for beforehand, so that every method gains. Weights of exactly zero stay zero, and a row that
does not come closer to its outputs keeps its weights.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def fitted(w: Tensor, h: Tensor, cross: Tensor, damping: float) -> Tensor:
    """T of w [rows, columns], with h = x x^T and cross = x' x^T [columns, columns]."""
    damped = h.clone()
    mean = h.diagonal().mean()
    damped.diagonal().add_(damping * (mean if mean > 0 else 1.0))
    lacks = (w @ (cross - h)).mT
    moved = torch.cholesky_solve(lacks, torch.linalg.cholesky(damped)).mT
    target = torch.where(w == 0, 0.0, w + moved)
    better = _cost(target, w, h, cross) < _cost(w, w, h, cross)
    return torch.where(better.unsqueeze(1), target, w)


def _cost(t: Tensor, w: Tensor, h: Tensor, cross: Tensor) -> Tensor:
    """||T x - W x'||^2 of each row, less what does not depend on T."""
    found: Tensor = ((t @ h) * t - 2 * (w @ cross) * t).sum(1)
    return found
