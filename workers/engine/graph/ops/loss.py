"""Losses that a file may contain as operators."""

from __future__ import annotations

import torch
from torch.nn import functional

from workers.engine.graph.ops._operator import Call, operator

Tensor = torch.Tensor


@operator()
def NegativeLogLikelihoodLoss(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    return functional.nll_loss(
        x, target.long(), weight, ignore_index=ignore_index, reduction=reduction
    )


@operator(takes_call=True)
def SoftmaxCrossEntropyLoss(
    call: Call,
    scores: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor | tuple[Tensor, Tensor]:
    logs = torch.log_softmax(scores, 1)
    loss = functional.nll_loss(
        logs, labels.long(), weights, ignore_index=ignore_index, reduction=reduction
    )
    return (loss, logs) if call.outputs == 2 else loss
