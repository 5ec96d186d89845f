"""Weights in the form that passes look for, whatever the exporter made of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from workers.engine.graph import Graph, edit, fold, plain


def turn(graph: Graph, *, copy_shared: bool = False) -> None:
    """Turns weights that the graph transposes at each run, as exporters write x @ w.T.

    w -> Transpose -> MatMul    becomes    w.T -> MatMul, under the same name
    w -> Transpose -> Gemm      becomes    w -> Gemm with the other transB, so that tied weights stay tied

    A weight that is read in several forms is left alone, or turned as a copy where `copy_shared`. What depends on constants alone
    is computed once, and roundabout operators are written plainly.
    """
    fold.constants(graph)
    plain.rewrite(graph)
    for node in graph.nodes:
        if node.op_type == "Gemm":
            _read_as_it_lies(node)
    for node in graph.nodes:
        value = node.inputs[0] if node.op_type in ("Transpose", "Identity") else None
        if value is None or value.const_value is None or not _is_read(node.outputs[0]):
            continue
        if node.op_type == "Identity":
            edit.replace_uses(node.outputs[0], value)
        elif _is_turned_alike(value):
            _turn_everywhere(graph, node, value)
        elif copy_shared:
            copy = graph.add_weight(f"{value.name}_turned", _turned(node, value))
            edit.replace_uses(node.outputs[0], copy)
    edit.remove_dead(graph)


def _read_as_it_lies(gemm: ir.Node) -> None:
    maker = gemm.inputs[1].producer() if gemm.inputs[1] is not None else None
    if maker is None or maker.op_type != "Transpose" or maker.inputs[0] is None:
        return
    if maker.inputs[0].const_value is not None:
        gemm.replace_input_with(1, maker.inputs[0])
        gemm.attributes.add(ir.AttrInt64("transB", 1 - gemm.attributes.get_int("transB", 0)))


def _is_read(value: ir.Value) -> bool:
    """By nodes alone."""
    return bool(value.uses()) and not value.is_graph_output()


def _is_turned_alike(value: ir.Value) -> bool:
    """Whether all that reads a weight transposes it first, in one way."""
    readers = [node for node, _ in value.uses()]
    return all(
        node.op_type == "Transpose"
        and _axes(node) == _axes(readers[0])
        and not node.outputs[0].is_graph_output()
        for node in readers
    )


def _turn_everywhere(graph: Graph, node: ir.Node, value: ir.Value) -> None:
    readers = [reader for reader, _ in value.uses()]
    graph.set_weight(value.name or "", _turned(node, value))
    for reader in readers:
        edit.replace_uses(reader.outputs[0], value)


def _turned(node: ir.Node, value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    array = value.const_value.numpy()
    return np.ascontiguousarray(np.transpose(array, _axes(node)))


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    """Null where all are turned around."""
    return tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else None
