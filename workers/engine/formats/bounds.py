"""What a model would do when it runs, bounded before it runs: its memory and its loops."""

from __future__ import annotations

import onnx_ir as ir

from workers.engine.errors import BadModel, Unsupported
from workers.engine.graph import Graph, shapes

MAX_ACTIVATION_BYTES = 2**33
"""Activations of one sample that must exist at one time."""

MAX_TRIPS = 1024


def check(graph: Graph) -> None:
    """Refuse a model that would take absurd memory for one sample, or loop without a bound.

    Raises:
        BadModel: it would; or all its shapes are fixed and do not fit each other.
        Unsupported: it has a Loop whose trip count is no constant.
    """
    _check_loops(graph.model.graph, 1)
    try:
        facts = shapes.measure(graph, shapes.example_shapes(graph))
    except Unsupported:
        return
    except BadModel:
        if _is_static(graph):
            raise
        return
    if facts.peak_bytes > MAX_ACTIVATION_BYTES:
        raise BadModel(
            f"one sample needs {facts.peak_bytes:,} bytes for activations; the limit is "
            f"{MAX_ACTIVATION_BYTES:,}"
        )


def _is_static(graph: Graph) -> bool:
    """Whether only a first axis may be open: then one sample is a fair try."""
    return all(
        value.shape is not None
        and len(value.shape) > 1
        and all(isinstance(dim, int) for dim in value.shape[1:])
        for value in graph.inputs
    )


def _check_loops(graph: ir.Graph, outer: int) -> None:
    """Hold the trips of nested loops, multiplied, to the limit."""
    for node in graph:
        trips = outer * _trips(node)
        if trips > MAX_TRIPS:
            raise Unsupported(
                f"Loop '{node.name}' has no constant trip count of at most {MAX_TRIPS:,}, counted "
                "with the loops around it",
                layer=node.name or "",
                hint="unroll the loop when you export the model",
            )
        for attribute in node.attributes.values():
            if attribute.type is ir.AttributeType.GRAPH:
                _check_loops(attribute.as_graph(), trips)


def _trips(node: ir.Node) -> int:
    if node.op_type != "Loop" or node.domain != "":
        return 1
    count = node.inputs[0].const_value if node.inputs and node.inputs[0] is not None else None
    if count is None or count.size != 1:
        return MAX_TRIPS + 1
    return max(1, int(count.numpy().reshape(-1)[0]))
