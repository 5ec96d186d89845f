"""A layer by itself: the linear map that its node is, without its bias."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from workers.engine.graph import program
from workers.engine.passes.quantize._targets import Target

Array = npt.NDArray[np.floating]


def multiply(target: Target, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What the layer's node makes of x with this weight and no bias."""
    step = program.step(target.node)
    result: torch.Tensor = step.operator.compute(x, weight, **step.attributes)
    return result


def groups(target: Target) -> int:
    """Groups of a convolution; 1 of other layers."""
    return target.node.attributes.get_int("group", 1) if "Conv" in target.kind else 1


def is_matrix(target: Target) -> bool:
    """Whether the layer multiplies rows: the last axis of its input."""
    return target.kind in ("Gemm", "MatMul")


def as_rows(target: Target, weight: Array) -> Array:
    """The weight of a Conv, Gemm or MatMul as [groups, outputs of a group, inputs of an output]."""
    outputs = np.moveaxis(weight, target.axis, 0)
    count = groups(target)
    return outputs.reshape(count, len(outputs) // count, -1)


def from_rows(target: Target, rows: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `as_rows`."""
    moved = [shape[target.axis], *(n for i, n in enumerate(shape) if i != target.axis)]
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, target.axis))
