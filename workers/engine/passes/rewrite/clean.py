"""rewrite.clean: takes out what a network computes for nothing, by the passes of onnxscript and onnx-ir.

    constants computed at each run    computed once
    x -> Identity -> y                x -> y; and other operators that do nothing
    two equal nodes                   one
    nodes that no output needs        none
    Conv -> BatchNormalization        Conv with scaled weight and shifted bias

Weights that happen to be equal stay apart: training would tie them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules.common import _fuse_batchnorm, _no_op

from modelpress.spec.rewrite import RewriteClean
from workers.engine.context import Context
from workers.engine.errors import NothingChanged
from workers.engine.graph import Graph, edit

_MOST_INPUT_BYTES, _MOST_OUTPUT_BYTES = 1 << 20, 1 << 19
"""Of what is computed once: larger results would make the file larger."""


def apply(graph: Graph, step: RewriteClean, ctx: Context) -> Graph:
    """Runs every pass, and reports the nodes that went by it.

    Raises:
        NothingChanged: the network is clean already.
    """
    before = len(_nodes(graph))
    for what, run in _PASSES.items():
        if run is _fold_batch_norm and not step.fold_batch_norm:
            continue
        for name, op_type in _gone(graph, run):
            ctx.touched(name, f"{op_type}: {what}")
    edit.remove_dead(graph)
    if not ctx.coverage.touched:
        raise NothingChanged(
            f"rewrite.clean found nothing to take out of {before:,} nodes",
            hint="leave this step out for this model",
        )
    ctx.note(f"nodes {before:,} -> {len(_nodes(graph)):,}")
    return graph


def survey(graph: Graph, ctx: Context) -> None:
    """Lists what would go. Raises as `apply`."""
    apply(graph, RewriteClean(), ctx)


def _gone(graph: Graph, run: Callable[[ir.Model], object]) -> list[tuple[str, str]]:
    """Names and operators of the nodes that a pass took out; what it put in the place of one bears its name."""
    old = [(node, node.name or "", node.op_type) for node in _nodes(graph)]
    run(graph.model)
    now = _nodes(graph)
    kept, made = set(now), [node for node in now if node not in {n for n, *_ in old}]
    gone = [(name, op_type) for node, name, op_type in old if node not in kept]
    for node in made:
        same = next((pair for pair in gone if pair[1] == node.op_type), None)
        node.name = same[0] if same is not None else graph.unused_name(node.op_type)
        gone = [pair for pair in gone if pair is not same]
    _name_values(graph, made)
    return gone


def _nodes(graph: Graph) -> list[ir.Node]:
    """All of them, in the bodies of others too."""
    return list(ir.traversal.RecursiveGraphIterator(graph.model.graph))


def _name_values(graph: Graph, nodes: Sequence[ir.Node]) -> None:
    for node in nodes:
        for value in node.outputs:
            if not value.name:
                value.name = graph.unused_name(f"{node.name}_output")


def _fold_constants(model: ir.Model) -> None:
    optimizer.fold_constants(
        model, input_size_limit=_MOST_INPUT_BYTES, output_size_limit=_MOST_OUTPUT_BYTES
    )
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _fold_batch_norm(model: ir.Model) -> None:
    rewriter.rewrite(model, _fuse_batchnorm.rules)


def _drop_no_ops(model: ir.Model) -> None:
    rewriter.rewrite(model, _no_op.rules)


_PASSES: dict[str, Callable[[ir.Model], object]] = {
    "no output needs it": common.RemoveUnusedNodesPass(),
    "what it computes does not change, and is stored": _fold_constants,
    "it did nothing": _drop_no_ops,
    "it passed on what it got": common.IdentityEliminationPass(),
    "multiplied into the layer before it": _fold_batch_norm,
    "another node computes the same": common.CommonSubexpressionEliminationPass(),
}
"""In this order, with the reason that the report gives."""
