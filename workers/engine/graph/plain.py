"""Write in plain operators what exporters express in roundabout ones, so that passes see it."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from workers.engine.errors import BadModel, Unsupported
from workers.engine.graph import edit, shapes
from workers.engine.graph.graph import Graph


def rewrite(graph: Graph) -> None:
    """Replaces lists of parts by slices, and lookups of all elements in their order by a Reshape, in place.

    SplitToSequence -> SequenceAt 1    becomes    Slice
    x -> Reshape [-1] -> Gather of 0, 1, 2, ...    becomes    x -> Reshape

    What is computed from constants alone must be a constant already (`fold.constants`).
    """
    for node in graph.nodes:
        if node.op_type == "SequenceAt":
            _slice(graph, node)
        elif node.op_type == "Gather":
            _view(graph, node)
    edit.remove_dead(graph)


def _slice(graph: Graph, node: ir.Node) -> None:
    parts = node.inputs[0].producer() if node.inputs[0] is not None else None
    place = _constant(node.inputs[1])
    if parts is None or parts.op_type != "SplitToSequence" or place is None:
        return
    bounds = _bounds(parts, int(place))
    if bounds is None or node.outputs[0].is_graph_output():
        return
    axis = parts.attributes["axis"].as_int() if "axis" in parts.attributes else 0
    numbers = [
        graph.add_weight(f"{node.name}_{what}", np.array([number], np.int64))
        for what, number in zip(("start", "end", "axis"), (*bounds, axis), strict=True)
    ]
    made = edit.insert_before(graph, node, "Slice", [parts.inputs[0], *numbers])
    edit.replace_uses(node.outputs[0], made.outputs[0])


def _bounds(parts: ir.Node, place: int) -> tuple[int, int] | None:
    """Where one part begins and ends; null where that isn't constant, or counts from the end."""
    split = _constant(parts.inputs[1]) if len(parts.inputs) > 1 else None
    if split is None or place < 0:
        return None
    if split.ndim == 0:
        return int(split) * place, int(split) * (place + 1)
    ends = np.cumsum(split)
    return (int(ends[place] - split[place]), int(ends[place])) if place < len(split) else None


def _view(graph: Graph, node: ir.Node) -> None:
    """as_strided of torch, where it moves nothing."""
    flat = node.inputs[0].producer() if node.inputs[0] is not None else None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if flat is None or not _is_flattening(flat) or axis or node.outputs[0].is_graph_output():
        return
    source, inner = flat.inputs[0], _counted(node.inputs[1])
    if source is None or inner is None or not _has_rows(graph, source, node.outputs[0]):
        return
    target = graph.add_weight(f"{node.name}_shape", np.array([-1, *inner], np.int64))
    made = edit.insert_before(graph, node, "Reshape", [source, target])
    edit.replace_uses(node.outputs[0], made.outputs[0])


def _is_flattening(node: ir.Node) -> bool:
    told = _constant(node.inputs[1]) if node.op_type == "Reshape" else None
    return told is not None and told.tolist() == [-1]


def _counted(index: ir.Value | None) -> tuple[int, ...] | None:
    """Axes after the first one of indices that count 0, 1, 2, ... for any length of the first one; null for others.

    range(N) * size, along the first axis, + constants 0 ... size - 1
    """
    rows, offsets = (None, np.zeros(())) if index is None else _sum(index)
    if rows is None or offsets.ndim < 1 or offsets.shape[0] != 1:
        return None
    is_counted = np.array_equal(offsets.ravel(), np.arange(offsets.size))
    if not is_counted or not _are_rows(rows, offsets.size, offsets.ndim - 1):
        return None
    return offsets.shape[1:]


def _has_rows(graph: Graph, source: ir.Value, result: ir.Value) -> bool:
    """Whether a value and what was looked up in it have as many elements, whatever the batch."""
    for batch in _BATCHES:
        try:
            found = shapes.infer(graph, shapes.example_shapes(graph, batch))
        except (BadModel, Unsupported):
            return False
        if math.prod(found[source.name or ""]) != math.prod(found[result.name or ""]):
            return False
    return True


_BATCHES = (1, 3)


def _sum(index: ir.Value) -> tuple[ir.Value | None, np.ndarray]:
    """The only addend that isn't constant, and the sum of the others; null where there are more."""
    constant = np.zeros((), np.int64)
    while (maker := index.producer()) is not None and maker.op_type == "Add":
        addends = [(value, _constant(value)) for value in maker.inputs]
        computed = [value for value, known in addends if known is None]
        if len(computed) != 1 or computed[0] is None:
            return None, constant
        constant = constant + sum(known for _, known in addends if known is not None)
        index = computed[0]
    return index, constant


def _are_rows(value: ir.Value, stride: int, inner: int) -> bool:
    """Whether a value is 0, stride, 2 * stride, ... before `inner` axes of one element."""
    unsqueeze = value.producer()
    if unsqueeze is None or unsqueeze.op_type != "Unsqueeze" or unsqueeze.inputs[0] is None:
        return False
    axes, product = _constant(unsqueeze.inputs[1]), unsqueeze.inputs[0].producer()
    if axes is None or axes.tolist() != list(range(1, inner + 1)):
        return False
    if product is None or product.op_type != "Mul" or product.inputs[0] is None:
        return False
    counter, factor = product.inputs[0].producer(), _constant(product.inputs[1])
    if counter is None or counter.op_type != "Range" or factor is None or int(factor) != stride:
        return False
    first, step = _constant(counter.inputs[0]), _constant(counter.inputs[2])
    return first is not None and step is not None and (int(first), int(step)) == (0, 1)


def _constant(value: ir.Value | None) -> np.ndarray | None:
    """Elements of whole numbers that are written into the graph; null for others."""
    tensor = None if value is None else value.const_value
    if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    return tensor.numpy()
