"""Writes networks straight into a Graph: one operator after another, with new weights and readable names.

Images are [N, channels, height, width]. A value's channels are known from what made it, so that a layer is asked for by what it gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir

from workers.engine.graph.graph import Graph

OPSET, IR_VERSION = 21, 10
"""As in graphs that were loaded."""
EPSILON = 1e-5
"""Added to the variance in batch normalization."""

Attributes = Mapping[str, int | float | str | Sequence[int]]
Window = int | Sequence[int]
"""Of height and width, or of each."""


def empty(inputs: Mapping[str, Sequence[int | str]]) -> Graph:
    """A network of no nodes that takes float32 inputs of these shapes; a size that is a word may be any."""
    values = [
        ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        for name, shape in inputs.items()
    ]
    graph = ir.Graph(values, [], nodes=[], opset_imports={"": OPSET}, name="network")
    return Graph(ir.Model(graph, ir_version=IR_VERSION, producer_name="modelpress"))


class Builder:
    """Appends to a graph, or puts before one of its nodes.

    Weights of convolutions and of linear layers are normal with variance 2 / fan_in (He et al., arXiv 1502.01852), biases 0, scales 1.
    """

    def __init__(
        self, graph: Graph, rng: np.random.Generator, *, before: ir.Node | None = None
    ) -> None:
        self.graph, self._rng, self._before = graph, rng, before
        self._scope: list[str] = []
        self._channels: dict[ir.Value, int] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """What is built inside bears this name before its own."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def channels(self, x: ir.Value) -> int:
        """Size of the second axis.

        Raises:
            KeyError: nothing built `x`, and its shape does not say.
        """
        if x in self._channels:
            return self._channels[x]
        size = x.shape[1] if x.shape is not None and len(x.shape) > 1 else None
        if not isinstance(size, int):
            raise KeyError(f"the channels of '{x.name}' are not known")
        return size

    def assume(self, x: ir.Value, channels: int) -> ir.Value:
        """Tells the channels of a value whose shape does not."""
        self._channels[x] = channels
        return x

    def op(
        self,
        op_type: str,
        operands: Sequence[ir.Value | None],
        channels: int,
        *,
        attributes: Attributes | None = None,
        name: str = "",
    ) -> ir.Value:
        """The one output of a new node."""
        label = self._name(name or op_type.lower())
        out = ir.Value(
            name=self.graph.unused_name(label), type=ir.TensorType(ir.DataType.FLOAT), shape=None
        )
        named = self.graph.unused_name(f"{out.name}/{op_type}")
        node = ir.node(op_type, operands, attributes, outputs=[out], name=named)
        if self._before is None:
            self.graph.model.graph.append(node)
        else:
            self.graph.model.graph.insert_before(self._before, node)
        return self.assume(out, channels)

    def conv(
        self,
        x: ir.Value,
        out: int,
        kernel: Window = 3,
        *,
        stride: Window = 1,
        groups: int = 1,
        pad: Window | None = None,
        dilation: Window = 1,
        bias: bool = False,
        name: str = "conv",
    ) -> ir.Value:
        """A convolution to `out` channels; padded so that stride 1 keeps the size, where `pad` says nothing else.

        A number is for height and width; `pad` may also be one for each of both beginnings, then of both ends.

        Raises:
            ValueError: channels can't be cut into so many groups.
        """
        before, window = self.channels(x), _both(kernel)
        if before % groups or out % groups:
            raise ValueError(f"{before} channels to {out} can't be cut into {groups} groups")
        operands = [x, self._weight(f"{name}.weight", (out, before // groups, *window))]
        if bias:
            operands.append(self._constant(f"{name}.bias", np.zeros(out, np.float32)))
        dilations = _both(dilation)
        keeping = [d * (k - 1) // 2 for d, k in zip(dilations, window, strict=True)]
        attributes: dict[str, int | Sequence[int]] = {
            "kernel_shape": window,
            "strides": _both(stride),
            "pads": _edges(keeping if pad is None else pad),
            "dilations": dilations,
            "group": groups,
        }
        return self.op("Conv", operands, out, attributes=attributes, name=name)

    def depthwise(
        self,
        x: ir.Value,
        kernel: Window = 3,
        *,
        stride: Window = 1,
        pad: Window | None = None,
        dilation: Window = 1,
        name: str = "depthwise",
    ) -> ir.Value:
        """A convolution of each channel with a filter of its own."""
        channels = self.channels(x)
        return self.conv(
            x,
            channels,
            kernel,
            stride=stride,
            groups=channels,
            pad=pad,
            dilation=dilation,
            name=name,
        )

    def batch_norm(self, x: ir.Value, *, name: str = "norm") -> ir.Value:
        """Normalization over the batch, with scale 1, offset 0, mean 0 and variance 1 at first."""
        channels = self.channels(x)
        starts = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        vectors = [
            self._constant(f"{name}.{part}", np.full(channels, start, np.float32))
            for part, start in starts.items()
        ]
        return self.op(
            "BatchNormalization",
            [x, *vectors],
            channels,
            attributes={"epsilon": EPSILON},
            name=name,
        )

    def linear(self, x: ir.Value, out: int, *, name: str = "linear") -> ir.Value:
        """x: [N, features] -> [N, out]."""
        weight = self._weight(f"{name}.weight", (out, self.channels(x)))
        bias = self._constant(f"{name}.bias", np.zeros(out, np.float32))
        return self.op("Gemm", [x, weight, bias], out, attributes={"transB": 1}, name=name)

    def relu(self, x: ir.Value) -> ir.Value:
        """max(x, 0)."""
        return self._same("Relu", x)

    def relu6(self, x: ir.Value) -> ir.Value:
        """min(max(x, 0), 6) (Krizhevsky 2010)."""
        ends = [self._constant(f"relu6.{n}", np.float32(v)) for n, v in (("low", 0), ("high", 6))]
        return self._same("Clip", x, *ends, name="relu6")

    def hard_sigmoid(self, x: ir.Value) -> ir.Value:
        """min(max(x + 3, 0), 6) / 6."""
        attributes = {"alpha": 1 / 6, "beta": 0.5}
        return self.op("HardSigmoid", [x], self.channels(x), attributes=attributes)

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Elementwise sum."""
        return self._same("Add", a, b)

    def mul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Elementwise product; b may be [N, channels, 1, 1]."""
        return self._same("Mul", a, b)

    def concat(self, *parts: ir.Value) -> ir.Value:
        """One after another along the channels."""
        channels = sum(map(self.channels, parts))
        return self.op("Concat", parts, channels, attributes={"axis": 1})

    def take(self, x: ir.Value, first: int, end: int) -> ir.Value:
        """Channels first..end-1."""
        bounds = [
            self._constant(f"slice.{n}", np.array([v], np.int64))
            for n, v in (("start", first), ("end", end), ("axis", 1))
        ]
        return self.op("Slice", [x, *bounds], end - first)

    def shuffle(self, x: ir.Value, groups: int) -> ir.Value:
        """Channels of all groups in turn (ShuffleNet, arXiv 1707.01083, section 3.1), whatever the size of the image."""
        channels = self.channels(x)
        order = np.arange(channels, dtype=np.int64).reshape(groups, -1).T.ravel()
        operands = [x, self._constant("shuffle.order", order)]
        return self.op("Gather", operands, channels, attributes={"axis": 1}, name="shuffle")

    def max_pool(self, x: ir.Value, kernel: int = 3, *, stride: int = 2, pad: int = 1) -> ir.Value:
        """The largest of each window."""
        return self._pool("MaxPool", x, kernel, stride, pad)

    def average_pool(
        self, x: ir.Value, kernel: int = 3, *, stride: int = 2, pad: int = 1
    ) -> ir.Value:
        """The mean of each window, without its padding."""
        return self._pool("AveragePool", x, kernel, stride, pad)

    def global_average_pool(self, x: ir.Value) -> ir.Value:
        """[N, channels, 1, 1]."""
        return self._same("GlobalAveragePool", x, name="pool")

    def dropout(self, x: ir.Value, ratio: float) -> ir.Value:
        """Zeroes this share of the values, in training only."""
        return self._same("Dropout", x, self._constant("dropout.ratio", np.float32(ratio)))

    def flatten(self, x: ir.Value) -> ir.Value:
        """[N, channels], of [N, channels, 1, 1]."""
        return self.op("Flatten", [x], self.channels(x), attributes={"axis": 1})

    def answer(self, x: ir.Value, name: str, shape: Sequence[int | str]) -> Graph:
        """Makes a value the network's output and gives it this name; answers the network."""
        x.name, x.shape = name, ir.Shape(shape)
        self.graph.model.graph.outputs.append(x)
        return self.graph

    def _pool(self, op_type: str, x: ir.Value, kernel: int, stride: int, pad: int) -> ir.Value:
        attributes = {
            "kernel_shape": (kernel, kernel),
            "strides": (stride, stride),
            "pads": (pad,) * 4,
        }
        return self.op(op_type, [x], self.channels(x), attributes=attributes, name="pool")

    def _same(self, op_type: str, x: ir.Value, *more: ir.Value, name: str = "") -> ir.Value:
        return self.op(op_type, [x, *more], self.channels(x), name=name)

    def _weight(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        deviation = np.sqrt(2 / np.prod(shape[1:]))
        drawn = self._rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)
        return self._constant(name, drawn)

    def _constant(self, name: str, array: np.ndarray | np.generic) -> ir.Value:
        return self.graph.add_weight(self._name(name), np.asarray(array))

    def _name(self, name: str) -> str:
        return "/".join([*self._scope, name])


def _both(window: Window) -> list[int]:
    return [window] * 2 if isinstance(window, int) else list(window)


def _edges(pad: Window) -> list[int]:
    """Of both beginnings, then of both ends."""
    edges = _both(pad)
    return edges * 2 if len(edges) == 2 else edges
