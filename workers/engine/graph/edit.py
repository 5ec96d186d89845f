"""Changes to a graph, in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from workers.engine.graph.graph import Graph


def replace_uses(old: ir.Value, new: ir.Value, *, outputs: bool = False) -> None:
    """Let every node that reads old read new; with `outputs`, the graph's outputs too."""
    old.replace_all_uses_with(new, replace_graph_outputs=outputs)


def take_place(graph: Graph, old: ir.Value, new: ir.Value) -> None:
    """Let everything that reads old, the graph's outputs too, read new, which takes its name, type and shape."""
    replace_uses(old, new, outputs=True)
    name, old.name = old.name, graph.unused_name(f"{old.name}_before")
    new.name, new.shape, new.type = name, old.shape, old.type


def insert_after(
    graph: Graph,
    anchor: ir.Node,
    op_type: str,
    operands: Sequence[ir.Value | None],
    *,
    attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
    outputs: Sequence[str] = ("",),
    name: str = "",
    domain: str = "",
) -> ir.Node:
    """Add a node right after another, with fresh names where none are given; no use is redirected."""
    node = _node(graph, op_type, operands, attributes, outputs, name, domain, anchor.name or "")
    assert anchor.graph is not None
    anchor.graph.insert_after(anchor, node)
    return node


def insert_before(
    graph: Graph,
    anchor: ir.Node,
    op_type: str,
    operands: Sequence[ir.Value | None],
    *,
    attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
    outputs: Sequence[str] = ("",),
    name: str = "",
    domain: str = "",
) -> ir.Node:
    """Add a node right before another, with fresh names where none are given; no use is redirected."""
    node = _node(graph, op_type, operands, attributes, outputs, name, domain, anchor.name or "")
    assert anchor.graph is not None
    anchor.graph.insert_before(anchor, node)
    return node


def _node(
    graph: Graph,
    op_type: str,
    operands: Sequence[ir.Value | None],
    attributes: Mapping[str, int | float | str | Sequence[int]] | None,
    outputs: Sequence[str],
    name: str,
    domain: str,
    near: str,
) -> ir.Node:
    unique = graph.unused_name(name or f"{near}_{op_type}")
    values = [ir.Value(name=graph.unused_name(output or f"{unique}_output")) for output in outputs]
    return ir.Node(
        domain,
        op_type,
        operands,
        ir.convenience.convert_attributes(dict(attributes or {})),
        outputs=values,
        name=unique,
    )


def remove_dead(graph: Graph) -> list[str]:
    """Remove nodes and initializers that no output needs; answers the names of what went."""
    main = graph.model.graph
    gone: list[str] = []
    for node in reversed(list(main)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            gone.append(node.name or "")
            main.remove(node, safe=True)
    for name, value in list(main.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            gone.append(name)
            del main.initializers[name]
    return gone


def fold_batch_norm(graph: Graph) -> list[str]:
    """Multiply each BatchNormalization into the layer before it. Training is over after this.

    Conv/ConvTranspose/Gemm -> BatchNormalization    becomes
    Conv/ConvTranspose/Gemm with scaled weight and shifted bias

    A layer whose result or weight is used elsewhere, or whose weight is computed, is left alone. Outputs of the graph keep their names.

    Returns:
        Names of the folded BatchNormalization nodes.
    """
    folded = [node.name or "" for node in graph.nodes if _fold(graph, node)]
    remove_dead(graph)
    return folded


_OUT_AXIS = {"Conv": 0, "ConvTranspose": 1}


def _fold(graph: Graph, norm: ir.Node) -> bool:
    layer = _foldable_layer(graph, norm)
    if layer is None:
        return False
    names = [value.name or "" for value in norm.inputs[1:5] if value is not None]
    if any(name not in graph.initializers for name in names):
        return False
    scale, shift, mean, var = (graph.weight(name).astype(np.float64) for name in names)
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    factor = scale / np.sqrt(var + epsilon)
    weight, bias = layer.inputs[1], layer.inputs[2] if len(layer.inputs) > 2 else None
    assert weight is not None
    old = graph.weight(weight.name or "")
    old_bias = np.zeros(1) if bias is None else graph.weight(bias.name or "").astype(np.float64)
    graph.set_weight(weight.name or "", _scaled(layer, old, factor).astype(old.dtype))
    new_bias = ((old_bias - mean) * factor + shift).astype(old.dtype)
    layer.resize_inputs(3)
    layer.replace_input_with(2, graph.add_weight(f"{weight.name}_folded_bias", new_bias))
    if norm.outputs[0].is_graph_output():
        take_place(graph, norm.outputs[0], layer.outputs[0])
    else:
        replace_uses(norm.outputs[0], layer.outputs[0])
    return True


def _foldable_layer(graph: Graph, norm: ir.Node) -> ir.Node | None:
    if norm.op_type != "BatchNormalization" or len([o for o in norm.outputs if o.name]) > 1:
        return None
    if "training_mode" in norm.attributes and norm.attributes["training_mode"].as_int():
        return None
    layer = norm.inputs[0].producer() if norm.inputs[0] is not None else None
    if layer is None or layer.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return None
    if len(layer.outputs[0].uses()) != 1 or layer.outputs[0].is_graph_output():
        return None
    constants = [value for value in layer.inputs[1:] if value is not None]
    if any(value.name not in graph.initializers for value in constants):
        return None
    if len(constants[0].uses()) != 1 or (layer.op_type == "Gemm" and not _is_plain(layer)):
        return None
    return layer


def _is_plain(gemm: ir.Node) -> bool:
    return all(
        gemm.attributes[a].as_float() == 1 for a in ("alpha", "beta") if a in gemm.attributes
    )


def _scaled(layer: ir.Node, weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The weight with each output channel multiplied by its factor."""
    scaled: np.ndarray
    if layer.op_type == "Gemm":
        turned = "transB" in layer.attributes and layer.attributes["transB"].as_int()
        scaled = weight * (factor[:, None] if turned else factor[None, :])
        return scaled
    if layer.op_type == "Conv":
        scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        return scaled
    groups = layer.attributes["group"].as_int() if "group" in layer.attributes else 1
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    spread = factor.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    scaled = (split * spread).reshape(weight.shape)
    return scaled
