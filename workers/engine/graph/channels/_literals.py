"""Numbers in a graph that say how many channels there are: shapes, bounds, sizes and places.

A rehearsal runs the graph with sliced weights that have no elements, and compares what each node is told with what it must be told.
Where they differ, the number is replaced: in a constant, in the part of a joined shape that it comes from, or by a product behind a
computed shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from workers.engine.graph import edit, program, shapes, tensors
from workers.engine.graph.channels.plan import Plan, Removed
from workers.engine.graph.graph import Graph
from workers.engine.graph.ops import Call

Wanted = list[int]


def correct(graph: Graph, rehearsed: Rehearsal, plan: Plan) -> None:
    """Corrects every number that is wrong after weights lost channels."""
    nodes = {node.name: node for node in graph.nodes}
    for name, slot, was, wanted in rehearsed.found:
        _replace(graph, nodes[name], slot, was, wanted)
    for name in rehearsed.frozen:
        value = plan.flow.host[name]
        stored = graph.add_weight(f"{name}_kept", tensors.to_numpy(value))
        edit.replace_uses(_output(graph, name), stored)
    edit.remove_dead(graph)


def rehearse(graph: Graph, plan: Plan, removed: Removed, input_shapes: shapes.Shapes) -> Rehearsal:
    """Runs the graph as if channels were gone already.

    Raises:
        BadModel, Unsupported: the result would not fit together, which is a defect of a rule.
    """
    return shapes.run(graph, input_shapes, lambda values: Rehearsal(values, plan, removed))


def _output(graph: Graph, name: str) -> ir.Value:
    return next(v for node in graph.nodes for v in node.outputs if v.name == name)


class Rehearsal(shapes.Ruler):
    """Runs a graph without some channels as if its numbers were right, and writes down which are wrong."""

    def __init__(self, values: program.Values, plan: Plan, removed: Removed) -> None:
        for name, kept in plan.slices(removed).items():
            values[name] = _sliced(values[name], kept)
        super().__init__(values)
        self.plan, self.removed = plan, removed
        self.attributes = counted(plan, removed)
        self.found: list[tuple[str, int, Wanted | None, Wanted]] = []
        """Node, operand, what it is told and what it must be told."""
        self._left: dict[str, dict[int, np.ndarray]] = {}
        self.frozen: list[str] = []
        """Values computed from sizes that must stay as they were."""
        self._depth = 0

    def apply(self, step: program.Step, operands: list[Any], call: Call) -> Any:
        """Correct attributes and operands first."""
        if step.name in self.attributes:
            changed = {**step.attributes, **self.attributes[step.name]}
            step = replace(step, attributes=changed)
        if self._depth == 0 and step.operator.name in _WANTED:
            for slot, wanted in _WANTED[step.operator.name](self, step, operands).items():
                operands = self._told(step, operands, slot, wanted)
        self._depth += 1
        try:
            results = super().apply(step, operands, call)
        finally:
            self._depth -= 1
        if self._depth == 0 and _makes_float(step, operands):
            results = self._frozen(step, results)
        return results

    def _told(
        self, step: program.Step, operands: list[Any], slot: int, wanted: Wanted
    ) -> list[Any]:
        given = operands[slot] if slot < len(operands) else None
        was = None if given is None or program.is_away(given) else tensors.ints(given)
        if was == wanted:
            return operands
        self.found.append((step.name, slot, was, wanted))
        padded = [*operands, *[None] * (slot + 1 - len(operands))]
        same = given is not None and given.numel() == len(wanted)
        shape = tuple(given.shape) if given is not None and same else (len(wanted),)
        padded[slot] = torch.tensor(wanted, dtype=torch.int64).reshape(shape)
        return padded

    def _frozen(self, step: program.Step, result: torch.Tensor) -> torch.Tensor:
        """A number made of sizes, such as the scale of attention, stays that of the whole network."""
        name = step.outputs[0]
        before = self.plan.flow.host.get(name)
        if before is None or program.is_away(result) or not result.is_floating_point():
            return result
        if before.shape == result.shape and torch.equal(before, result):
            return result
        self.frozen.append(name)
        return before

    def size(self, name: str, axis: int) -> int:
        """How long an axis of a value must be now."""
        return self.sizes(name)[axis]

    def sizes(self, name: str) -> Wanted:
        """The shape that a value must have now."""
        left = self.left(name)
        shape = self.plan.flow.shapes[name]
        return [int(left[a].sum()) if a in left else size for a, size in enumerate(shape)]

    def left(self, name: str) -> dict[int, np.ndarray]:
        """Which elements of a value stay, along the axes on which it loses some."""
        if name not in self._left:
            self._left[name] = self.plan.left(name, self.removed)
        return self._left[name]

    def before(self, step: program.Step, slot: int) -> list[int]:
        """What an operand told the whole network."""
        return tensors.ints(self.plan.flow.reads[step.name][slot])


def _makes_float(step: program.Step, operands: list[Any]) -> bool:
    """Whether sizes may become numbers to compute with here."""
    is_cast = step.operator.name in ("Cast", "CastLike")
    return is_cast and not operands[0].is_floating_point()


def counted(plan: Plan, removed: Removed) -> dict[str, dict[str, int | float]]:
    """Attributes that count channels or groups, or follow from them and must not, by node and name."""
    kept: dict[tuple[str, str], np.ndarray] = {}
    for count in (c for book in plan.books for c in book.counts):
        key = count.node, count.attribute
        kept[key] = kept.get(key, np.True_) & plan.kept(count.labels, removed)
    found: dict[str, dict[str, int | float]] = {}
    for (node, attribute), stays in kept.items():
        found.setdefault(node, {})[attribute] = int(stays.sum())
    for fixed in (f for book in plan.books for f in book.fixed):
        if not plan.kept(fixed.labels, removed).all():
            found.setdefault(fixed.node, {})[fixed.attribute] = fixed.value
    return found


def _sliced(tensor: torch.Tensor, kept: Mapping[int, np.ndarray]) -> torch.Tensor:
    for axis, stays in kept.items():
        if tensor.device.type == "cpu":
            tensor = tensor.index_select(axis, torch.from_numpy(np.flatnonzero(stays)))
        else:
            tensor = tensor.narrow(axis, 0, int(stays.sum()))
    return tensor


def _reshape(run: Rehearsal, step: program.Step, operands: list[Any]) -> dict[int, Wanted]:
    """-1 and 0 stay where they mean the right size."""
    told, wanted = tensors.ints(operands[1]), run.sizes(step.outputs[0])
    if -1 in told:
        wanted[told.index(-1)] = -1
    now = operands[0].shape
    for axis, size in enumerate(told):
        copies = size == 0 and not step.attributes.get("allowzero", 0)
        if copies and axis < len(now) and now[axis] == wanted[axis]:
            wanted[axis] = 0
    return {1: wanted}


def _expand(run: Rehearsal, step: program.Step, operands: list[Any]) -> dict[int, Wanted]:
    told, wanted = tensors.ints(operands[1]), run.sizes(step.outputs[0])
    wanted = wanted[len(wanted) - len(told) :] if len(told) <= len(wanted) else wanted
    return {1: [1 if size == 1 else need for size, need in zip(told, wanted, strict=True)]}


def _slice(run: Rehearsal, step: program.Step, operands: list[Any]) -> dict[int, Wanted]:
    """Bounds on an axis of channels count those that are kept before them."""
    rank = len(run.plan.flow.shapes[step.inputs[0]])
    starts, ends = run.before(step, 1), run.before(step, 2)
    has_axes = len(operands) > 3 and operands[3] is not None
    axes = [a % rank for a in (tensors.ints(operands[3]) if has_axes else range(len(starts)))]
    now = [tensors.ints(operands[1]), tensors.ints(operands[2])]
    for axis, kept in run.left(step.inputs[0]).items():
        if axis in axes:
            at = axes.index(axis)
            bounds = slice(starts[at], ends[at]).indices(kept.size)
            for bound, told in zip(bounds, now, strict=False):
                told[at] = int(kept[:bound].sum())
    return {1: now[0], 2: now[1]}


def _split(run: Rehearsal, step: program.Step, operands: list[Any]) -> dict[int, Wanted]:
    along = step.attributes.get("axis", 0) % len(run.plan.flow.shapes[step.inputs[0]])
    if along not in run.left(step.inputs[0]):
        return {}
    return {1: [run.size(name, along) if name else 0 for name in step.outputs]}


def _gather(run: Rehearsal, step: program.Step, operands: list[Any]) -> dict[int, Wanted]:
    """Places among the channels that are kept."""
    along = step.attributes.get("axis", 0) % len(run.plan.flow.shapes[step.inputs[0]])
    kept = run.left(step.inputs[0]).get(along)
    if kept is None:
        return {}
    places = np.cumsum(kept) - 1
    known = run.plan.flow.book.graph.initializers[step.inputs[1]].const_value
    assert known is not None
    return {1: [int(places[i]) for i in tensors.ints(tensors.from_ir(known)) if kept[i]]}


def _resize(run: Rehearsal, step: program.Step, operands: list[Any]) -> dict[int, Wanted]:
    left = run.left(step.inputs[0])
    if not left or len(operands) < 4 or operands[3] is None or "axes" in step.attributes:
        return {}
    told = tensors.ints(operands[3])
    for axis in left:
        told[axis] = run.size(step.outputs[0], axis)
    return {3: told}


def _filled(run: Rehearsal, step: program.Step, operands: list[Any]) -> dict[int, Wanted]:
    return {0: run.sizes(step.outputs[0])} if run.left(step.outputs[0]) else {}


_WANTED: dict[str, Callable[[Rehearsal, program.Step, list[Any]], dict[int, Wanted]]] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "ConstantOfShape": _filled,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Resize": _resize,
}


def _replace(graph: Graph, node: ir.Node, slot: int, was: Wanted | None, wanted: Wanted) -> None:
    """Tells a node other numbers."""
    told = node.inputs[slot] if slot < len(node.inputs) else None
    if told is None or told.const_value is not None or was is None or len(was) != len(wanted):
        node.resize_inputs(max(slot + 1, len(node.inputs)))
        old = None if told is None else told.const_value
        array = np.array(wanted, np.int64 if old is None else old.numpy().dtype)
        array = (
            array.reshape(old.numpy().shape)
            if old is not None and old.size == array.size
            else array
        )
        name = f"{node.name}_numbers" if told is None else f"{told.name}_pruned"
        node.replace_input_with(slot, graph.add_weight(name, array))
        node.attributes.pop("num_outputs", None)
        return
    for place, (one, other) in enumerate(zip(was, wanted, strict=True)):
        if one != other and not _replace_part(graph, node, slot, place, other):
            _scale(graph, node, slot, was, wanted)
            return


def _replace_part(graph: Graph, node: ir.Node, slot: int, place: int, size: int) -> bool:
    """Replaces the constant that a joined shape takes this element from; False where there is none."""
    joined = node.inputs[slot]
    concat = None if joined is None else joined.producer()
    if concat is None or concat.op_type != "Concat" or len(joined.uses()) != 1:  # type: ignore[union-attr]
        return False
    for part, value in enumerate(concat.inputs):
        length = _length(value)
        if length is None or value is None:
            return False
        if place < length:
            if value.const_value is None:
                return False
            array = value.const_value.numpy().copy()
            array[place] = size
            concat.replace_input_with(part, graph.add_weight(f"{value.name}_pruned", array))
            return True
        place -= length
    return False


def _length(value: ir.Value | None) -> int | None:
    """Elements of a part of a shape, where it is known to be one or constant."""
    if value is None:
        return None
    if value.const_value is not None:
        return int(value.const_value.size)
    maker = value.producer()
    return 1 if maker is not None and maker.op_type == "Unsqueeze" else None


def _scale(graph: Graph, node: ir.Node, slot: int, was: Wanted, wanted: Wanted) -> None:
    """Multiplies a computed shape by what is left of it: numbers that follow the batch still do."""
    told = node.inputs[slot]
    up = [need if one != need else 1 for one, need in zip(was, wanted, strict=True)]
    down = [one if one != need else 1 for one, need in zip(was, wanted, strict=True)]
    kind = np.int64
    top = graph.add_weight(f"{node.name}_kept", np.array(up, kind))
    bottom = graph.add_weight(f"{node.name}_of", np.array(down, kind))
    product = edit.insert_before(graph, node, "Mul", [told, top])
    quotient = edit.insert_before(graph, node, "Div", [product.outputs[0], bottom])
    node.replace_input_with(slot, quotient.outputs[0])
