"""How far values inside a student are from those inside its teacher: means over samples, of tensors [N, ...].

hint          squared difference over the teacher's variance             FitNets, arXiv 1412.6550, eq. 3
attention     |q(s) / |q(s)| - q(t) / |q(t)||^2, q = sum over channels of squares       arXiv 1612.03928, eq. 2 and 3 (p = 2)
relational    Huber loss of distances between samples, and twice that of angles         arXiv 1904.05068, eq. 7 to 12

Differs in: hints are over the teacher's variance, so that one weight does for all layers; angles are among the first 64 samples of a
batch, of which there are 262,144.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_ANGLES_AMONG = 64
_TINY = 1e-12


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Values of one shape."""
    variance = teacher.float().var().clamp_min(_TINY)
    return (student.float() - teacher.float()).square().mean() / variance


def attention(student: Tensor, teacher: Tensor, axis: int) -> Tensor:
    """Values that differ in the axis of their channels only."""
    maps = [
        functional.normalize(x.float().square().sum(axis).flatten(1), dim=1)
        for x in (student, teacher)
    ]
    return (maps[0] - maps[1]).square().sum(1).mean()


def relational(student: Tensor, teacher: Tensor) -> Tensor:
    """Values of any shapes."""
    own, theirs = (x.float().flatten(1) for x in (student, teacher))
    distances = functional.smooth_l1_loss(_distances(own), _distances(theirs))
    first = [x[:_ANGLES_AMONG] for x in (own, theirs)]
    return distances + 2 * functional.smooth_l1_loss(_angles(first[0]), _angles(first[1]))


def _distances(x: Tensor) -> Tensor:
    """Between all samples, over their mean: [N, N]."""
    squares = (x[:, None] - x[None]).square().sum(2) if x.shape[1] <= 256 else _by_product(x)
    apart = squares.clamp_min(_TINY).sqrt() * (1 - torch.eye(len(x), device=x.device))
    positive = apart.sum() / max(1, len(x) * (len(x) - 1))
    return apart / positive.clamp_min(_TINY)


def _by_product(x: Tensor) -> Tensor:
    """Squared distances without a tensor of all differences."""
    norms = x.square().sum(1)
    return norms[:, None] + norms[None] - 2 * x @ x.T


def _angles(x: Tensor) -> Tensor:
    """Cosines of the angles at each sample between each two others: [N, N, N]."""
    directions = functional.normalize(x[None] - x[:, None], dim=2)
    return directions @ directions.transpose(1, 2)
