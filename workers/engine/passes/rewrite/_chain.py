"""A row of layers in the place of one.

    x -> conv -> y    becomes    x -> conv_vertical -> conv -> y

The last of them keeps the layer's node, name, bias and output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from workers.engine.graph import Graph, edit, match
from workers.engine.passes.rewrite._decomposition import Factors, Slot

Attributes = dict[str, int | float | str | Sequence[int]]


def replace(graph: Graph, layers: Sequence[match.Layer], factors: Factors) -> list[str]:
    """Lets all layers that share a weight be rows of layers that share these. Answers the names of the new weights."""
    weight = layers[0].weight
    dtype = graph.weight(weight).dtype
    arrays = [_laid_out(array, layers[0]).astype(dtype) for array in factors.weights]
    values = [
        graph.add_weight(f"{weight}_{slot.name}", array)
        for slot, array in zip(factors.slots, arrays, strict=True)
    ]
    for layer in layers:
        if layer.kind == "Conv":
            _replace_conv(graph, layer, factors.slots, values)
        else:
            _replace_product(graph, layer, factors.slots, values)
    edit.remove_dead(graph)
    return [value.name or "" for value in values]


def _laid_out(array: np.ndarray, layer: match.Layer) -> np.ndarray:
    """Outputs on the axis where the layer has them."""
    return array if layer.out_axis == 0 else np.ascontiguousarray(array.T)


def _replace_conv(
    graph: Graph, layer: match.Layer, slots: Sequence[Slot], values: Sequence[ir.Value]
) -> None:
    node, given = layer.node, dict(layer.node.attributes)
    x = node.inputs[0]
    for slot, value in zip(slots[:-1], values[:-1], strict=True):
        made = edit.insert_before(
            graph,
            node,
            "Conv",
            [x, value],
            attributes=_geometry(given, slot),
            name=f"{layer.name}_{slot.name}",
        )
        x = made.outputs[0]
    node.replace_input_with(0, x)
    node.replace_input_with(1, values[-1])
    node.attributes.clear()
    for attribute in ir.convenience.convert_attributes(dict(_geometry(given, slots[-1]))):
        node.attributes.add(attribute)


def _geometry(given: Mapping[str, ir.Attr], slot: Slot) -> Attributes:
    """The layer's strides, dilations and padding along the axes of a slot, and none along the others."""
    kernel = slot.shape[2:]
    rank = len(kernel)
    found: Attributes = {"kernel_shape": kernel, "group": slot.group}
    for name in ("strides", "dilations"):
        if name in given:
            sizes = given[name].as_ints()
            found[name] = [sizes[n] if n in slot.axes else 1 for n in range(rank)]
    if "pads" in given:
        pads = given["pads"].as_ints()
        found["pads"] = [pads[n] if n % rank in slot.axes else 0 for n in range(2 * rank)]
    if "auto_pad" in given and slot.axes:
        found["auto_pad"] = given["auto_pad"].as_string()
    return found


def _replace_product(
    graph: Graph, layer: match.Layer, slots: Sequence[Slot], values: Sequence[ir.Value]
) -> None:
    node, attributes = layer.node, Attributes()
    if layer.kind == "Gemm":
        attributes = {name: node.attributes.get_int(name, 0) for name in ("transA", "transB")}
        node.attributes.pop("transA", None)
    made = edit.insert_before(
        graph,
        node,
        layer.kind,
        [node.inputs[0], values[0]],
        attributes=attributes,
        name=f"{layer.name}_{slots[0].name}",
    )
    node.replace_input_with(0, made.outputs[0])
    node.replace_input_with(1, values[1])
