"""Losses for the training loop, and which of them a classifier needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from workers.engine import graph
from workers.engine.errors import BadData, Unsupported


@dataclass(frozen=True)
class Batch:
    """One batch on the device, after the forward pass."""

    inputs: tuple[Tensor, ...]  # in the order of the model's inputs
    outputs: tuple[Tensor, ...]  # in the order of its outputs
    labels: Tensor | None  # [N] int64


Loss = Callable[[Batch], Tensor]
"""Mean loss of a batch: a scalar in float32."""


class Scores(Enum):
    """What the class scores of a model are."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    LOG_PROBABILITIES = "log-probabilities"
    INDEPENDENT = "independent probabilities"  # of a sigmoid


_MOVES = frozenset({"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout"})
_SCORES = {
    "Softmax": Scores.PROBABILITIES,
    "LogSoftmax": Scores.LOG_PROBABILITIES,
    "Sigmoid": Scores.INDEPENDENT,
}


def cross_entropy(batch: Batch) -> Tensor:
    """Cross-entropy of class scores that are logits.

    Raises:
        BadData: no labels, or a label that is no class.
        Unsupported: no output is [N, classes].
    """
    index = scores_index(batch.outputs)
    return _losses(batch.outputs[index].float(), _labels(batch, index), Scores.LOGITS)


def classification(of: graph.Graph) -> Loss:
    """Cross-entropy that fits a graph: what the class scores are is read off the operator that ends it.

    Without this a model that ends in Softmax would be trained through two of them. The loss raises as `cross_entropy`.
    """
    kinds = tuple(kind(output) for output in of.outputs)

    def loss(batch: Batch) -> Tensor:
        index = scores_index(batch.outputs)
        return _losses(batch.outputs[index].float(), _labels(batch, index), kinds[index])

    return loss


def kind(output: ir.Value) -> Scores:
    """What a graph output holds, found by going back over operators that only move data."""
    node = output.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None:
        return Scores.LOGITS
    if node.op_type == "Log" and _begins(node, 0) == "Softmax":
        return Scores.LOG_PROBABILITIES
    if node.op_type == "Div" and (_begins(node, 0), _begins(node, 1)) == ("Exp", "ReduceSum"):
        return Scores.PROBABILITIES
    return _SCORES.get(node.op_type, Scores.LOGITS)


def scores_index(outputs: tuple[Tensor, ...]) -> int:
    """Index of the class scores: the first float output [N, classes]; [N, 1] scores class 1 against class 0.

    Raises:
        Unsupported: there is none.
    """
    for index, output in enumerate(outputs):
        if output.ndim == 2 and output.is_floating_point():
            return index
    raise Unsupported(
        f"no output of the model is [samples, classes]; their shapes are {[list(o.shape) for o in outputs][:8]}",
        hint="training by labels needs a classifier; leave fine_tune null",
    )


def _losses(scores: Tensor, labels: Tensor, kind: Scores) -> Tensor:
    if scores.shape[1] == 1:
        return _binary(scores[:, 0], labels.float(), kind)
    if kind is Scores.LOGITS:
        return functional.cross_entropy(scores, labels)
    if kind is Scores.LOG_PROBABILITIES:
        return functional.nll_loss(scores, labels)
    if kind is Scores.PROBABILITIES:
        return functional.nll_loss(_log(scores), labels)
    wanted = functional.one_hot(labels, scores.shape[1]).float()
    return functional.binary_cross_entropy(scores.clamp(0, 1), wanted)


def _binary(score: Tensor, labels: Tensor, kind: Scores) -> Tensor:
    if kind is Scores.LOGITS:
        return functional.binary_cross_entropy_with_logits(score, labels)
    return functional.binary_cross_entropy(score.clamp(0, 1), labels)


def _log(probabilities: Tensor) -> Tensor:
    """Logarithm that stays finite at 0; its gradient through a softmax does too."""
    return probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()


def _labels(batch: Batch, index: int) -> Tensor:
    if batch.labels is None:
        raise BadData(
            "training needs labels, but the dataset has none", hint="add an array 'labels'"
        )
    classes = max(2, batch.outputs[index].shape[1])
    highest = int(batch.labels.max())
    if highest >= classes:
        raise BadData(
            f"label {highest} occurs, but the model's output has {classes} classes: labels go from 0 to {classes - 1}",
            layer="labels",
            hint="number the classes from 0 in the order of the model's outputs",
        )
    return batch.labels


def _begins(node: ir.Node, slot: int) -> str:
    """Operator that makes an operand; empty where none does."""
    value = node.inputs[slot]
    producer = None if value is None else value.producer()
    return "" if producer is None else producer.op_type
