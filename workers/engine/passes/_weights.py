"""Weights in the form that passes look for, whatever the exporter made of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from workers.engine.graph import Graph, edit, fold, plain


def turn(graph: Graph, *, copy_shared: bool = False) -> None:
    """Turns weights that the graph transposes at each run, as exporters write x @ w.T.

    w -> Transpose -> MatMul    becomes    w.T -> MatMul, under the same name.

    A weight that something else reads too is left alone, or turned as a copy where `copy_shared`. What depends on constants alone
    is computed once, and roundabout operators are written plainly.
    """
    fold.constants(graph)
    plain.rewrite(graph)
    for node in graph.nodes:
        value = node.inputs[0] if node.inputs else None
        if (
            node.op_type not in ("Transpose", "Identity")
            or value is None
            or value.const_value is None
        ):
            continue
        if node.outputs[0].is_graph_output():
            continue
        if node.op_type == "Identity":
            edit.replace_uses(node.outputs[0], value)
        elif len(value.uses()) == 1:
            graph.set_weight(value.name or "", _turned(node, value))
            edit.replace_uses(node.outputs[0], value)
        elif copy_shared:
            copy = graph.add_weight(f"{value.name}_turned", _turned(node, value))
            edit.replace_uses(node.outputs[0], copy)
    edit.remove_dead(graph)


def _turned(node: ir.Node, value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    array = value.const_value.numpy()
    axes = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
    return np.ascontiguousarray(np.transpose(array, axes))
