"""How far a student's class scores are from its teachers'.

kd     T^2 * KL(softmax(teacher / T) || softmax(student / T))        Hinton, Vinyals, Dean 2015, arXiv 1503.02531
dkd    T^2 * (a * TCKD + b * NCKD)                                   Zhao et al. 2022, arXiv 2203.08679, eq. 7
       TCKD: divergence of (right class, all others); NCKD: of the other classes among themselves

Standardised scores are (z - mean) / deviation of each sample (Sun et al. 2024, arXiv 2403.01427, section 4). Scores are [N, classes] float32
throughout; each divergence is the sum over classes, in the mean over samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from workers.engine.losses import Scores

_TINY = torch.finfo(torch.float32).tiny
_EPSILON = 1e-7  # of the paper of standardised scores


def logits(scores: Tensor, kind: Scores) -> Tensor:
    """Scores whose softmax are the probabilities; of a single class, beside zeros."""
    scores = scores.float()
    if scores.shape[1] == 1:
        logit = scores if kind is Scores.LOGITS else torch.logit(scores, eps=1e-6)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)
    if kind is Scores.INDEPENDENT:
        return torch.logit(scores, eps=1e-6)
    return scores.clamp_min(_TINY).log() if kind is Scores.PROBABILITIES else scores


def standardized(scores: Tensor) -> Tensor:
    """Each sample's scores minus their mean, over their deviation."""
    return (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + _EPSILON)


def combined(
    teachers: Sequence[Tensor], weights: Sequence[float], temperature: float, mean: str
) -> Tensor:
    """Scores z such that softmax(z / T) is the weighted mean of the teachers' softened distributions.

    The arithmetic mean is of probabilities; the geometric one is of scores, and is normalized by the softmax.
    """
    if len(teachers) == 1:
        return teachers[0]
    shares = torch.tensor(weights, dtype=torch.float64)
    shares = (shares / shares.sum()).to(teachers[0])[:, None, None]
    if mean == "geometric":
        return (torch.stack(list(teachers)) * shares).sum(0)
    logs = torch.stack([functional.log_softmax(scores / temperature, dim=1) for scores in teachers])
    return temperature * torch.logsumexp(logs + shares.log(), dim=0)


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the divergence of softened scores."""
    return temperature**2 * _divergence(student / temperature, teacher / temperature)


def dkd(
    student: Tensor,
    teacher: Tensor,
    right: Tensor,
    temperature: float,
    *,
    target_weight: float,
    others_weight: float,
) -> Tensor:
    """T^2 times the two parts of the divergence, each with its own weight. right: [N] int64."""
    own, theirs = student / temperature, teacher / temperature
    target = _divergence(_against_others(own, right), _against_others(theirs, right))
    others = _divergence(_without(own, right), _without(theirs, right))
    return temperature**2 * (target_weight * target + others_weight * others)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    logs = [functional.log_softmax(scores, dim=1) for scores in (student, teacher)]
    each = functional.kl_div(logs[0], logs[1], reduction="none", log_target=True)
    return each.sum(1).mean()


def _against_others(scores: Tensor, right: Tensor) -> Tensor:
    """Scores of two classes: the right one, and all others together."""
    own = scores.gather(1, right[:, None])
    return torch.cat([own, _without(scores, right).logsumexp(1, keepdim=True)], dim=1)


def _without(scores: Tensor, right: Tensor) -> Tensor:
    """Scores of the other classes, [N, classes - 1]."""
    samples, classes = scores.shape
    others = torch.arange(classes, device=scores.device) != right[:, None]
    return scores[others].view(samples, classes - 1)
