"""Training beside the parent: its class scores as soft labels (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).

loss = (1 - a) * CE(labels, student) + a * T^2 * KL(softmax(parent / T) || softmax(student / T))
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.engine import losses
from workers.engine.graph import Graph, execute
from workers.engine.losses import Batch, Scores


class Taught(nn.Module):
    """A student that answers its own outputs and then its parent's, which is not trained."""

    def __init__(self, student: nn.Module, parent: Graph) -> None:
        super().__init__()
        self.student = student
        self.parent = execute.as_module(parent).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Taught:
        super().train(mode)
        self.parent.eval()
        return self

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            soft = self.parent(*inputs)
        return (*self.student(*inputs), *soft)


def loss(parent: Graph, weight: float, temperature: float) -> losses.Loss:
    """The loss of a Taught module; `weight` is the parent's share. Raises as `losses.classification`."""
    hard, kinds = losses.classification(parent), [losses.kind(output) for output in parent.outputs]

    def mixed(batch: Batch) -> Tensor:
        own = replace(batch, outputs=batch.outputs[: len(kinds)])
        index = losses.scores_index(own.outputs)
        student, teacher = (
            _logits(outputs[index].float(), kinds[index])
            for outputs in (own.outputs, batch.outputs[len(kinds) :])
        )
        soft = soft_loss(student, teacher, temperature)
        return soft if weight == 1 else weight * soft + (1 - weight) * hard(own)

    return mixed


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the divergence of softened scores [N, classes], the mean over samples."""
    logs = [functional.log_softmax(scores / temperature, dim=1) for scores in (student, teacher)]
    divergence = functional.kl_div(logs[0], logs[1], reduction="none", log_target=True)
    return temperature**2 * divergence.sum(1).mean()


def _logits(scores: Tensor, kind: Scores) -> Tensor:
    """Scores [N, classes] whose softmax are the probabilities; of a single class, beside zeros."""
    tiny = torch.finfo(torch.float32).tiny
    if scores.shape[1] == 1:
        logit = scores if kind is Scores.LOGITS else torch.logit(scores, eps=1e-6)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)
    if kind is Scores.INDEPENDENT:
        return torch.logit(scores, eps=1e-6)
    return scores.clamp_min(tiny).log() if kind is Scores.PROBABILITIES else scores
