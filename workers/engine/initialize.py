"""New weights for a network: the same architecture, as if it had never been trained.

    convolution, matrix product     normal, variance 2 / fan_in before a rectifier (He et al., arXiv 1502.01852, section 2.2),
                                    else 2 / (fan_in + fan_out) (Glorot, Bengio 2010, eq. 16)
    recurrent cell                  uniform within 1 / sqrt(hidden)
    table that is looked up, position embedding     normal, deviation 0.02
    scale of a normalization, factor    1;  bias, addend    0;  slope of PRelu    0.25
    running mean    0;  running variance    1

What is applied before the first layer, such as the mean and the deviation that scale an image, was never trained and stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from workers.engine.graph import Graph, match, roles
from workers.engine.graph.ops import TABLE, key

Array = npt.NDArray[np.floating]

EMBEDDING_STD = 0.02
PRELU_SLOPE = 0.25

_RECTIFIERS = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Clip", "HardSwish", "Mish"}
)
_SEEN_THROUGH = frozenset(
    {"BatchNormalization", "Add", "Identity", "Dropout", "MaxPool", "AveragePool"}
)
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_FACTORS = frozenset({"Mul", "Div"})


def fresh(graph: Graph, rng: np.random.Generator) -> Graph:
    """A copy whose trained weights are drawn anew and whose running statistics are those of untrained layers.

    A weight that several nodes read is drawn once. Shapes and element types stay.
    """
    result = graph.clone()
    layers = {layer.weight: layer for layer in reversed(match.layers(result))}
    untrained = set(_before_layers(result))
    for name, value in result.initializers.items():
        role = roles.role(value)
        if role is roles.Role.CONSTANT or name in untrained:
            continue
        drawn = _draw(result.weight(name), value, layers.get(name), rng)
        result.set_weight(name, drawn.astype(result.weight(name).dtype))
    return result


def _draw(
    old: Array, value: ir.Value, layer: match.Layer | None, rng: np.random.Generator
) -> Array:
    """New elements of one weight or statistic. old: of the same shape."""
    if layer is not None:
        return rng.normal(0.0, _layer_std(old.shape, layer), old.shape)
    node, slot = _reader(value)
    if node.op_type == "BatchNormalization" and slot >= 3:
        return np.full(old.shape, float(slot - 3))
    if node.op_type in _RECURRENT:
        bound = _hidden(node) ** -0.5
        return rng.uniform(-bound, bound, old.shape)
    if node.op_type == "PRelu":
        return np.full(old.shape, PRELU_SLOPE)
    if "Normalization" in node.op_type:
        return np.full(old.shape, float(slot == 1))
    if sum(size > 1 for size in old.shape) > 1:
        return rng.normal(0.0, _matrix_std(old.shape, node), old.shape)
    return np.full(old.shape, float(node.op_type in _FACTORS))


def _layer_std(shape: tuple[int, ...], layer: match.Layer) -> float:
    """He before a rectifier, else Glorot. A convolution's filter counts as often as it has positions."""
    positions = math.prod(shape[2:])
    groups = layer.node.attributes["group"].as_int() if "group" in layer.node.attributes else 1
    fan_in, fan_out = shape[layer.in_axis] * positions, shape[layer.out_axis] * positions
    if layer.kind == "Conv":
        fan_out //= groups
    if layer.kind == "ConvTranspose":
        fan_in //= groups
    if _is_rectified(layer.node):
        return math.sqrt(2.0 / fan_in)
    return math.sqrt(2.0 / (fan_in + fan_out))


def _matrix_std(shape: tuple[int, ...], node: ir.Node) -> float:
    """Of what is no layer of its own: Glorot where it multiplies, else as narrow as an embedding."""
    if node.op_type in ("MatMul", "Gemm", "Einsum"):
        return math.sqrt(2.0 / (shape[-1] + shape[-2]))
    if "Conv" in node.op_type:
        return math.sqrt(2.0 / ((shape[0] + shape[1]) * math.prod(shape[2:])))
    return EMBEDDING_STD


def _hidden(node: ir.Node) -> int:
    """Width of a recurrent cell: the last axis of its recurrent weight."""
    recurrent = node.inputs[2]
    assert recurrent is not None
    assert recurrent.shape is not None
    return recurrent.shape.numpy()[-1]


def _is_rectified(node: ir.Node) -> bool:
    """Whether a rectifier follows, perhaps behind a bias, a normalization or pooling."""
    for use in node.outputs[0].uses():
        if use.node.op_type in _RECTIFIERS:
            return True
        if use.node.op_type in _SEEN_THROUGH and _is_rectified(use.node):
            return True
    return False


def _reader(value: ir.Value) -> tuple[ir.Node, int]:
    """The first node that takes a value as a weight or a statistic, not for its shape, and where it enters."""
    for node, slot in _readers(value):
        operator = TABLE[key(node.domain, node.op_type)]
        if slot in operator.weights or slot in operator.statistics:
            return node, slot
    raise AssertionError(f"'{value.name}' has a role, so that something computes with it")


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The nodes that compute with a value, and where it enters; operators that only move data are followed."""
    for node, slot in value.uses():
        operator = TABLE[key(node.domain, node.op_type)]
        if operator.moves_data and slot not in operator.weights and slot not in operator.host:
            for output in node.outputs:
                yield from _readers(output)
        else:
            yield node, slot


def _before_layers(graph: Graph) -> Iterator[str]:
    """Names of vectors that elementwise nodes apply to the inputs themselves, before any layer."""
    raw = set(graph.inputs)
    for node in graph.nodes:
        operands = [value for value in node.inputs if value is not None]
        given = [value for value in operands if value.const_value is None]
        elementwise = node.op_type in ("Add", "Sub", "Mul", "Div")
        moved = TABLE[key(node.domain, node.op_type)].moves_data and node.inputs[0] in raw
        if not given or not set(given) <= raw or not (elementwise or moved):
            continue
        raw.update(node.outputs)
        if elementwise:
            yield from (value.name or "" for value in operands if value.const_value is not None)
