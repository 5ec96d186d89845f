"""Bring a loaded model to the one form that every pass sees."""

from __future__ import annotations

import itertools

import onnx_ir as ir
from onnx_ir.passes import common

from workers.engine.errors import BadModel
from workers.engine.formats import upgrade

OPSET = 21
"""Models of an older opset are rewritten to this one; newer ones keep theirs."""
IR_VERSION = 10

OPSET_OF_FILE = "opset_of_file"
"""Key in the model's meta (never saved): the opset the file was written in."""


def normalise(model: ir.Model) -> None:
    """Inline functions, turn Constant nodes into initializers, upgrade the opset, name everything; in place.

    Raises:
        BadModel: the graph has a cycle.
        Unsupported: an operator has no form in the newer opset.
    """
    model.meta[OPSET_OF_FILE] = model.graph.opset_imports.get("", OPSET)
    common.InlinePass()(model)
    model.functions.clear()
    common.NameFixPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    common.RemoveInitializersFromInputsPass()(model)
    _sort(model)
    upgrade.upgrade(model, OPSET)
    common.NameFixPass()(model)
    _name_nodes_apart(model.graph)
    common.ClearMetadataAndDocStringPass()(model)
    _forget_shapes(model.graph)
    _drop_unused(model.graph)
    common.RemoveUnusedOpsetsPass()(model)
    model.ir_version = max(model.ir_version, IR_VERSION)


def _sort(model: ir.Model) -> None:
    try:
        model.graph.sort()
    except ValueError as error:
        raise BadModel(f"the graph is no graph without cycles: {error}") from error


def _name_nodes_apart(graph: ir.Graph) -> None:
    """No two nodes share a name, in bodies neither: onnx-ir tells apart only those of one graph. The outer ones keep theirs."""
    inner = (n for n in ir.traversal.RecursiveGraphIterator(graph) if n.graph is not graph)
    taken: set[str] = set()
    for node in (*graph, *inner):
        tries = (f"{node.name}_{n}" if n else f"{node.name}" for n in itertools.count())
        node.name = next(name for name in tries if name not in taken)
        taken.add(node.name)


def _forget_shapes(graph: ir.Graph) -> None:
    """Shapes written in the file may be wrong or go stale; ONNX Runtime finds them again."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def _drop_unused(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
