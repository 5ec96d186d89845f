"""Activations as signs: what is put in front of a layer, for training and for the file.

    y -> Relu -> MaxPool -> Conv             becomes
    y -> MaxPool -> BatchNormalization -> sign -> Pad(1) -> Conv without padding

A rectifier right before the layer goes: what it lets through has one sign. Where no normalization is left, one is added, so that signs
are of both kinds; it comes after pooling, which of signs would give 1 almost everywhere (XNOR-Net, section 3.3). Convolutions are
padded with 1, as binary kernels are: 0 is no sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from workers.engine.graph import Graph, edit, match
from workers.engine.graph.match import Layer

_MOVES = frozenset(
    {
        "Dropout",
        "Flatten",
        "Identity",
        "MaxPool",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
_RECTIFIERS = frozenset(
    {"Celu", "Clip", "Elu", "HardSigmoid", "LeakyRelu", "PRelu", "Relu", "Selu", "Sigmoid"}
    | {"Softplus", "Tanh"}
)
_NORMALIZATIONS = frozenset(
    {
        "BatchNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "RMSNormalization",
    }
)
_EPSILON = 1e-4
_AXES_ARE_INPUT = 18
"""The operator set from which ReduceMean reads its axes as an input."""


@dataclass
class Signs:
    """Where signs are taken, and why not elsewhere."""

    places: dict[str, ir.Node] = field(default_factory=dict)
    """Nodes that stand for the sign until `finish`, by the name of their result."""
    float_inputs: dict[str, str] = field(default_factory=dict)
    """Why the input of a layer stays in float, by the name of its node."""
    normalizations: int = 0
    """How many were added."""
    unscaled: dict[str, str] = field(default_factory=dict)
    """Why what a layer makes of signs has no scales of inputs, by the name of its node."""


def place(
    graph: Graph,
    layers: Iterable[Layer],
    ranks: Mapping[str, int],
    trained: set[ir.Value],
    *,
    scaled: bool = False,
) -> Signs:
    """Puts a place for a sign before each layer that can have one.

    Args:
        graph: Changes.
        layers: Those of binary weights.
        ranks: Numbers of axes by the name of a value.
        trained: Values that depend on a layer; of other values, which come from the network's input, no sign is taken.
        scaled: Multiply what a layer makes of signs by the mean size of the inputs they were taken of.
    """
    signs, known = Signs(), _Known()
    for layer in layers:
        value = layer.node.inputs[0]
        assert value is not None
        rank = ranks.get(value.name or "", 0)
        if value not in trained:
            signs.float_inputs[layer.name] = "it comes from the network's input"
        elif reason := _unfit(layer, value, rank):
            signs.float_inputs[layer.name] = reason
        else:
            _place(graph, layer, value, signs, known)
            if scaled and (reason := _scale_by_inputs(graph, layer, signs, rank)):
                signs.unscaled[layer.name] = reason
    edit.remove_dead(graph)
    return signs


def finish(graph: Graph, signs: Signs) -> None:
    """Replaces places by the operators of a sign that is 1 for 0."""
    for node in signs.places.values():
        (value,) = (v for v in node.inputs if v is not None)
        stored = node.outputs[0].dtype
        assert stored is not None, "places have the type of what they give"
        dtype = stored.numpy()
        zero, one, minus = (
            graph.add_weight(f"{node.name}_{name}", np.array(number, dtype))
            for name, number in (("zero", 0), ("one", 1), ("minus_one", -1))
        )
        above = edit.insert_before(graph, node, "GreaterOrEqual", [value, zero])
        chosen = edit.insert_before(graph, node, "Where", [above.outputs[0], one, minus])
        edit.replace_uses(node.outputs[0], chosen.outputs[0])
    edit.remove_dead(graph)


def places_in(copy: Graph, signs: Signs) -> Signs:
    """The places that a copy of the graph still has."""
    nodes = {node.outputs[0].name or "": node for node in copy.nodes}
    return Signs({name: nodes[name] for name in signs.places if name in nodes})


def trained_values(graph: Graph) -> set[ir.Value]:
    """Values that depend on a layer."""
    layers = {layer.node for layer in match.layers(graph)}
    found: set[ir.Value] = set()
    for node in graph.nodes:
        if node in layers or any(value in found for value in node.inputs):
            found.update(node.outputs)
    return found


@dataclass
class _Known:
    """What was put behind a value already, for all layers that read it."""

    places: dict[ir.Value, ir.Value] = field(default_factory=dict)
    pads: dict[tuple[ir.Value, tuple[int, ...]], ir.Value] = field(default_factory=dict)


def _unfit(layer: Layer, value: ir.Value, rank: int) -> str:
    """Why a layer's input can't become signs; '' where it can."""
    if "transA" in layer.node.attributes and layer.node.attributes["transA"].as_int():
        return "it is transposed"
    if rank == 2 or "Conv" in layer.kind or _is_normalized(_bare(value)[0]):
        return ""
    return f"it has {rank} axes and no normalization before it, which signs need"


def _place(graph: Graph, layer: Layer, value: ir.Value, signs: Signs, known: _Known) -> None:
    if value not in known.places:
        bare = _without_rectifier(graph, layer.node, value)
        if not _is_normalized(bare):
            bare = _normalized(graph, layer, bare)
            signs.normalizations += 1
        node = edit.insert_before(graph, layer.node, "Identity", [bare], name=f"{layer.name}_sign")
        node.outputs[0].dtype = ir.DataType.from_numpy(graph.weight(layer.weight).dtype)
        known.places[value] = node.outputs[0]
        signs.places[node.outputs[0].name or ""] = node
    placed = known.places[value]
    layer.node.replace_input_with(0, _padded(graph, layer, placed, known))


def _bare(value: ir.Value) -> tuple[ir.Value, list[ir.Node]]:
    """What a rectifier reads, and the nodes between it and the value that only move data; the value itself where there is none."""
    path: list[ir.Node] = []
    current = value
    while (node := current.producer()) is not None and node.inputs[0] is not None:
        if node.op_type in _RECTIFIERS and node.domain == "":
            return node.inputs[0], path
        if node.op_type not in _MOVES or current is not node.outputs[0]:
            break
        path.append(node)
        current = node.inputs[0]
    return value, []


def _without_rectifier(graph: Graph, before: ir.Node, value: ir.Value) -> ir.Value:
    """The value as it would be without the rectifier; nodes between are copied, as others may read them."""
    bare, path = _bare(value)
    for node in reversed(path):
        copy = edit.insert_before(graph, before, node.op_type, [bare, *node.inputs[1:]])
        copy.attributes.update(node.attributes)
        bare = copy.outputs[0]
    return bare


def _is_normalized(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type in _NORMALIZATIONS


def _normalized(graph: Graph, layer: Layer, value: ir.Value) -> ir.Value:
    channels = _inputs(graph, layer)
    dtype = graph.weight(layer.weight).dtype
    constants = [
        graph.add_weight(f"{layer.name}_norm_{name}", np.full(channels, number, dtype))
        for name, number in (("scale", 1), ("bias", 0), ("mean", 0), ("var", 1))
    ]
    node = edit.insert_before(
        graph,
        layer.node,
        "BatchNormalization",
        [value, *constants],
        attributes={"epsilon": _EPSILON},
        name=f"{layer.name}_norm",
    )
    return node.outputs[0]


def _scale_by_inputs(graph: Graph, layer: Layer, signs: Signs, rank: int) -> str:
    """Multiplies what a layer makes of signs by K (XNOR-Net, section 3.2), its bias with it; why not, or '' where done.

    x [N, C, H, W] -> |x| -> mean over C -> Pad(1) -> mean of each window: K [N, 1, H', W']
    """
    if "Conv" in layer.kind and (reason := _unscalable(graph, layer)):
        return reason
    node, source = layer.node, layer.node.inputs[0]
    assert source is not None, "signs were placed before the layer"
    pad = source.producer()
    is_padded = pad is not None and pad.op_type == "Pad"
    place = pad.inputs[0] if pad is not None and is_padded else source
    assert place is not None, "a Pad reads something"
    axis = 1 if layer.kind == "Conv" else rank - 1
    size = _mean_size(graph, node, signs.places[place.name or ""].inputs[0], axis)
    if pad is not None and is_padded:
        size = edit.insert_before(graph, node, "Pad", [size, *pad.inputs[1:]]).outputs[0]
    if layer.kind == "Conv":
        size = _mean_of_windows(graph, layer, size)
    old = node.outputs[0]
    scaled = edit.insert_after(graph, node, "Mul", [old, size], name=f"{layer.name}_input_scale")
    edit.take_place(graph, old, scaled.outputs[0])
    scaled.replace_input_with(0, old)
    return ""


def _unscalable(graph: Graph, layer: Layer) -> str:
    """Why the windows of a convolution have no mean size; '' where they have."""
    attributes = layer.node.attributes
    if layer.kind != "Conv":
        return "what a transposed convolution makes has no window of inputs"
    if graph.weight(layer.weight).ndim != 4:
        return "only images have scales of inputs"
    if "group" in attributes and attributes["group"].as_int() != 1:
        return "its groups read different channels"
    if "dilations" in attributes and any(d != 1 for d in attributes["dilations"].as_ints()):
        return "its windows are dilated"
    return "it pads itself" if _pads_itself(layer.node) else ""


def _mean_size(graph: Graph, node: ir.Node, value: ir.Value | None, axis: int) -> ir.Value:
    size = edit.insert_before(graph, node, "Abs", [value]).outputs[0]
    if graph.opset < _AXES_ARE_INPUT:
        mean = edit.insert_before(graph, node, "ReduceMean", [size], attributes={"axes": [axis]})
    else:
        axes = graph.add_weight(f"{node.name}_axes", np.array([axis], np.int64))
        mean = edit.insert_before(graph, node, "ReduceMean", [size, axes])
    return mean.outputs[0]


def _mean_of_windows(graph: Graph, layer: Layer, size: ir.Value) -> ir.Value:
    kernel = [int(side) for side in graph.weight(layer.weight).shape[2:]]
    given = layer.node.attributes
    strides = list(given["strides"].as_ints()) if "strides" in given else [1, 1]
    attributes = {"kernel_shape": kernel, "strides": strides}
    return edit.insert_before(
        graph, layer.node, "AveragePool", [size], attributes=attributes
    ).outputs[0]


def _inputs(graph: Graph, layer: Layer) -> int:
    """Channels that a layer reads."""
    shape = graph.weight(layer.weight).shape
    groups = layer.node.attributes["group"].as_int() if "group" in layer.node.attributes else 1
    count: int = shape[layer.in_axis] * (groups if layer.kind == "Conv" else 1)
    return count


def _padded(graph: Graph, layer: Layer, value: ir.Value, known: _Known) -> ir.Value:
    """The value with ones around it instead of the zeros that a convolution would add."""
    pads = layer.node.attributes["pads"].as_ints() if "pads" in layer.node.attributes else ()
    if layer.kind != "Conv" or not any(pads) or _pads_itself(layer.node):
        return value
    key = (value, tuple(pads))
    if key not in known.pads:
        half = len(pads) // 2
        wanted = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
        constants = (
            graph.add_weight(f"{layer.name}_pads", wanted),
            graph.add_weight(f"{layer.name}_pad", np.array(1, graph.weight(layer.weight).dtype)),
        )
        padded = edit.insert_before(graph, layer.node, "Pad", [value, *constants])
        known.pads[key] = padded.outputs[0]
    layer.node.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
    return known.pads[key]


def _pads_itself(node: ir.Node) -> bool:
    how = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    return how != "NOTSET"
