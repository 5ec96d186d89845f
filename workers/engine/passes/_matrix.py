"""The weight of a layer as a matrix: one row for each output, and what the columns are multiplied by.

Conv [O, I/g, kh, kw] has rows [O, I/g * kh * kw]; the rows of a group of a grouped convolution meet inputs of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch.nn import functional

from workers.engine.graph import Graph, match, program
from workers.engine.graph.ops import convolution

Element = TypeVar("Element", bound=np.generic)


@dataclass(frozen=True)
class Matrix:
    """How a weight of `shape` is read as [rows, columns]."""

    shape: tuple[int, ...]
    axis: int
    """Of the outputs."""
    groups: int
    """Parts of the rows that meet different inputs."""

    @classmethod
    def of(cls, graph: Graph, layer: match.Layer) -> Matrix:
        """That of a layer."""
        groups = layer.node.attributes.get_int("group", 1) if layer.kind == "Conv" else 1
        return cls(tuple(graph.weight(layer.weight).shape), layer.out_axis, groups)

    @property
    def rows(self) -> int:
        return self.shape[self.axis]

    @property
    def columns(self) -> int:
        return int(np.prod(self.shape)) // self.rows

    @property
    def moved(self) -> tuple[int, ...]:
        """The shape with the outputs first."""
        return (self.rows, *(n for axis, n in enumerate(self.shape) if axis != self.axis))

    def to_rows(self, weight: npt.NDArray[Element]) -> npt.NDArray[Element]:
        """[rows, columns] of a weight."""
        return np.moveaxis(weight, self.axis, 0).reshape(self.rows, self.columns)

    def from_rows(self, rows: npt.NDArray[Element]) -> npt.NDArray[Element]:
        """The weight of [rows, columns]."""
        return np.ascontiguousarray(np.moveaxis(rows.reshape(self.moved), 0, self.axis))


def has_inputs(layer: match.Layer) -> bool:
    """Whether `inputs` can tell what the columns are multiplied by."""
    return layer.kind != "ConvTranspose" or layer.node.attributes.get_int("group", 1) == 1


def strides(layer: match.Layer) -> Sequence[int]:
    """Of a convolution, for each of its axes."""
    weight = layer.node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    return _numbers(layer.node, "strides", len(weight.shape) - 2)


def inputs(layer: match.Layer, x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """What the columns of a layer's matrix are multiplied by: [groups, places, columns].

    Args:
        layer: Conv, ConvTranspose of one group, Gemm or MatMul.
        x: The layer's input: [N, C, *space], or [..., K]; [K, M] where a Gemm transposes it.
        shape: Of the weight.
    """
    if layer.kind == "Conv":
        return _patches(layer.node, x, shape)
    if layer.kind == "ConvTranspose":
        return _spread(layer.node, x, shape)
    if layer.node.attributes.get_int("transA", 0):
        x = x.T
    return x.reshape(1, -1, x.shape[-1])


def _spread(node: ir.Node, x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """[1, N * places, C * kernel]: what each place gets of each input through each element of the kernel.

    The transposed convolution itself gives it, channel by channel, with one element of the kernel 1 and the others 0.
    """
    channels, kernel = shape[0], shape[2:]
    ones = torch.eye(math.prod(kernel), dtype=x.dtype, device=x.device)
    weight = ones.reshape(1, len(ones), *kernel).repeat(channels, *[1] * (len(kernel) + 1))
    step = program.step(node)
    y = step.operator.compute(x, weight, **{**step.attributes, "group": channels})
    assert isinstance(y, torch.Tensor)
    return y.flatten(2).transpose(1, 2).reshape(1, -1, channels * len(ones))


def _patches(node: ir.Node, x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """[groups, N * places, C/groups * kernel]: what lies under the kernel at each of its places."""
    kernel, rank = shape[2:], len(shape) - 2
    strides = _numbers(node, "strides", rank)
    dilations = _numbers(node, "dilations", rank)
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    pads = node.attributes["pads"].as_ints() if "pads" in node.attributes else None
    edges = convolution.window_pads(x.shape[2:], kernel, strides, dilations, auto_pad, pads)
    x = functional.pad(x, convolution.torch_pads(edges))
    for axis, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True), start=2):
        x = x.unfold(axis, (k - 1) * d + 1, s)[..., ::d]
    groups = node.attributes.get_int("group", 1)
    batch, channels, places = x.shape[0], x.shape[1] // groups, x.shape[2 : 2 + rank]
    split = x.reshape(batch, groups, channels, places.numel(), -1)
    columns = channels * split.shape[-1]
    return split.permute(1, 0, 3, 2, 4).reshape(groups, batch * places.numel(), columns)


def _numbers(node: ir.Node, name: str, rank: int) -> Sequence[int]:
    return node.attributes[name].as_ints() if name in node.attributes else [1] * rank
