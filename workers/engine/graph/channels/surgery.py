"""Take channels out of a graph: slice every weight, then correct the numbers that are written into it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from workers.engine.errors import BadModel, EngineError, Unsupported
from workers.engine.graph import shapes, verify
from workers.engine.graph.channels import _literals
from workers.engine.graph.channels.plan import Plan, Removed
from workers.engine.graph.graph import Graph


def remove(
    graph: Graph,
    plan: Plan,
    removed: Removed,
    input_shapes: shapes.Shapes,
    *,
    is_checked: bool = True,
) -> None:
    """Takes channels out of the graph that the plan was made of, in place.

    Conv [64, 3, 3, 3] -> Conv [128, 64, 3, 3]    becomes
    Conv [48, 3, 3, 3] -> Conv [128, 48, 3, 3]

    `is_checked`: whether outputs are looked at, before and after; where many variants of a network are only run, that takes longest.

    Raises:
        BadModel, Unsupported: the result does not fit together, which is a defect of a rule.
    """
    before = [_answers(graph, input_shapes, batch) for batch in _BATCHES if is_checked]
    rehearsed = _literals.rehearse(graph, plan, removed, input_shapes)
    _slice_weights(graph, plan, removed)
    _count_anew(graph, plan, removed)
    _forget_shapes(graph)
    _literals.correct(graph, rehearsed, plan)
    if not is_checked:
        return
    verify.verify(graph)
    if before != [_answers(graph, input_shapes, batch) for batch in _BATCHES]:
        raise EngineError("removing channels changed the shape of an output")


_BATCHES = (1, 3)
"""Where the batch was open it must be open still."""


def _answers(graph: Graph, input_shapes: shapes.Shapes, batch: int) -> list[tuple[int, ...]] | None:
    """Shapes of the outputs; null where the model can't run such a batch."""
    try:
        found = shapes.infer(graph, shapes.example_shapes(graph, batch, input_shapes))
    except (BadModel, Unsupported):
        return None
    return [found[value.name or ""] for value in graph.outputs]


@dataclass(frozen=True)
class Cost:
    """What a network costs."""

    macs: int
    parameters: int


def cost(graph: Graph, plan: Plan, removed: Removed, input_shapes: shapes.Shapes) -> Cost:
    """What the graph would cost without some channels; nothing is changed."""
    rehearsed = _literals.rehearse(graph, plan, removed, input_shapes)
    names = [name for name in graph.initializers if graph.is_parameter(name)]
    parameters = sum(math.prod(rehearsed.shapes[name]) for name in names)
    return Cost(sum(rehearsed.macs.values()), parameters)


def _slice_weights(graph: Graph, plan: Plan, removed: Removed) -> None:
    for name, slices in plan.slices(removed).items():
        array = graph.weight(name)
        for axis, kept in slices.items():
            if not kept.all():
                array = np.compress(kept, array, axis=axis)
        if array.shape != graph.weight(name).shape:
            graph.set_weight(name, array)


def _count_anew(graph: Graph, plan: Plan, removed: Removed) -> None:
    counted = _literals.counted(plan, removed)
    for node in graph.nodes:
        for attribute, value in counted.get(node.name or "", {}).items():
            node.attributes.add(_attribute(attribute, value))


def _attribute(name: str, value: int | float) -> ir.Attr:
    return ir.AttrFloat32(name, value) if isinstance(value, float) else ir.AttrInt64(name, value)


def _forget_shapes(graph: Graph) -> None:
    """Sizes written beside values between nodes may be wrong now."""
    for node in graph.nodes:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
