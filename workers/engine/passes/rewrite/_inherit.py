"""What a block takes over from the convolution in whose place it is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from workers.engine.graph import Graph, match
from workers.engine.passes.rewrite import _units
from workers.engine.passes.rewrite._units import Unit


def weights(
    graph: Graph, layer: match.Layer, norm: ir.Node | None, unit: Unit, made: ir.Value
) -> None:
    """Sets the weights of a Separable or a Ghost block that the convolution's own tell; others begin anew.

    Separable: of each input channel's filters [O, k * k] the first singular vectors, one as depthwise filter and one as the pointwise weights,
    which is the best fit. Ghost: its primary maps are the first ones of the convolution. Biases and normalization go with the outputs.
    """
    if isinstance(unit, _units.Separable):
        _separable(graph, layer, norm, made)
    elif isinstance(unit, _units.Ghost):
        _ghost(graph, layer, norm, made)


def _separable(graph: Graph, layer: match.Layer, norm: ir.Node | None, made: ir.Value) -> None:
    last = _producer(made)
    pointwise = _producer(last.inputs[0]) if norm is not None else last
    depthwise = _producer(pointwise.inputs[0])
    weight = graph.weight(layer.weight)
    outputs, inputs, *kernel = weight.shape
    left, sizes, right = np.linalg.svd(
        weight.reshape(outputs, inputs, -1).transpose(1, 0, 2).astype(np.float64),
        full_matrices=False,
    )
    root = np.sqrt(sizes[:, :1])
    _set(graph, depthwise, 1, (right[:, 0] * root).reshape(inputs, 1, *kernel))
    _set(graph, pointwise, 1, (left[:, :, 0] * root).T.reshape(outputs, inputs, 1, 1))
    _tail(graph, layer, norm, pointwise, last, outputs)


def _ghost(graph: Graph, layer: match.Layer, norm: ir.Node | None, made: ir.Value) -> None:
    joined = _producer(made)
    joined = _producer(joined.inputs[0]) if joined.op_type == "Slice" else joined
    last = _producer(joined.inputs[0])
    primary = _producer(last.inputs[0]) if norm is not None else last
    count = len(graph.weight(_name(primary.inputs[1])))
    _set(graph, primary, 1, graph.weight(layer.weight)[:count])
    _tail(graph, layer, norm, primary, last, count)


def _tail(
    graph: Graph,
    layer: match.Layer,
    norm: ir.Node | None,
    conv: ir.Node,
    last: ir.Node,
    count: int,
) -> None:
    """The first `count` elements of the bias or of the normalization, whose mean takes in a bias before it."""
    bias = graph.weight(layer.bias)[:count] if layer.bias is not None else np.zeros(count)
    if norm is None:
        if layer.bias is not None:
            _set(graph, conv, 2, bias)
        return
    for slot in range(1, 5):
        given = graph.weight(_name(norm.inputs[slot]))[:count]
        _set(graph, last, slot, given - bias if slot == 3 else given)
    last.attributes.update(norm.attributes)


def _set(graph: Graph, node: ir.Node, slot: int, array: np.ndarray) -> None:
    graph.set_weight(_name(node.inputs[slot]), np.ascontiguousarray(array, np.float32))


def _producer(value: ir.Value | None) -> ir.Node:
    node = value.producer() if value is not None else None
    assert node is not None, "the block was just built"
    return node


def _name(value: ir.Value | None) -> str:
    assert value is not None
    return value.name or ""
