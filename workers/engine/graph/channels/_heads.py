"""Where attention cuts channels into heads, and which of them go: whole heads, or the same places of each head.

    MatMul [N, T, 64] -> Reshape [N, T, 4, 16] -> Transpose -> MatMul of two activations

A cut is found by following an axis of an operand of attention back to the node that made it of a wider one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from workers.engine.graph import program
from workers.engine.graph.channels.flow import Flow

Choice: TypeAlias = Literal["heads", "width"]

Place = tuple[str, int]
"""A value and one of its axes."""

_SAME = frozenset(
    (
        *("Slice", "Split", "Concat", "Pad", "Softmax", "Dropout", "RotaryEmbedding"),
        *("LayerNormalization", "RMSNormalization", "LpNormalization"),
    )
)
_PRODUCTS = frozenset(("MatMul", "Einsum", "Attention"))


@dataclass(frozen=True)
class Cut:
    """A node that makes an axis of heads and an axis of their width."""

    node: str
    value: str
    """What it makes; where it cuts for itself, each of what it reads and makes."""
    heads: int
    """Axis of what it makes; where it makes no such axis but cuts for itself, of [heads, width]."""
    width: int

    def axis(self, choice: Choice) -> int:
        """The axis that keeps its channels apart."""
        return self.heads if choice == "heads" else self.width


def cuts(flow: Flow) -> list[list[Cut]]:
    """The cuts of each attention: those of queries, keys and values together."""
    search = _Search(flow)
    found: list[tuple[set[str], list[Cut]]] = []
    for step in flow.steps:
        nodes, made = search.product(step)
        if made or nodes:
            joined = [known for known in found if known[0] & nodes]
            found = [known for known in found if not known[0] & nodes]
            names = nodes.union(*(names for names, _ in joined))
            found.append((names, [cut for _, before in joined for cut in before] + made))
    return [list(dict.fromkeys(made)) for _, made in found if made]


class _Search:
    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.makers = {name: step for step in flow.steps for name in step.outputs if name}
        self.weights = flow.book.graph.initializers

    def product(self, step: program.Step) -> tuple[set[str], list[Cut]]:
        """Products that this one belongs to, and the cuts of its operands; nothing where it is no attention."""
        if not self._is_attention(step):
            return set(), []
        if step.operator.name == "Attention" and len(self.flow.shapes[step.inputs[0]]) == 3:
            values = (*step.inputs[:3], step.outputs[0])
            return {step.name}, [Cut(step.name, v, 0, 1) for v in values if v in self.makers]
        nodes, made = {step.name}, []
        for heads, widths in _axes(step, [self.flow.shapes[name] for name in step.inputs[:3]]):
            source, axis = self.source(heads)
            if source is not None and self._is_attention(source):
                nodes.add(source.name)
            else:
                made += self._cut(source, axis, widths)
        return nodes, made

    def _is_attention(self, step: program.Step) -> bool:
        """A product with an activation on the right; on the left may be queries that are learned."""
        return step.operator.name in _PRODUCTS and step.inputs[1] not in self.weights

    def _cut(self, source: program.Step | None, heads: int, widths: Sequence[Place]) -> list[Cut]:
        if source is None:
            return []
        for place in widths:
            maker, axis = self.source(place)
            if maker is source and axis != heads and self._is_cut(source, heads, axis):
                return [Cut(source.name, source.outputs[0], heads, axis)]
        return []

    def _is_cut(self, step: program.Step, heads: int, width: int) -> bool:
        """Whether both axes are of one: of channels, or of a weight."""
        if step.operator.name != "Reshape":
            return True
        before, after = self.flow.shapes[step.inputs[0]], self.flow.shapes[step.outputs[0]]
        return _containing(before, after, heads) == _containing(before, after, width)

    def source(self, place: Place) -> tuple[program.Step | None, int]:
        """The node that makes an axis of something else, and which of its axes that is."""
        name, axis = place
        while name in self.makers:
            step = self.makers[name]
            if step.operator.name in _PRODUCTS:
                return step, axis
            before = self._before(step, axis)
            if before is None:
                return step, axis
            name, axis = before
        return None, axis

    def _before(self, step: program.Step, axis: int) -> Place | None:
        """The axis of an operand that an axis of the result was; null where it was none."""
        kind, name = step.operator.name, step.inputs[0] if step.inputs else ""
        if kind == "Transpose":
            rank = len(self.flow.shapes[name])
            perm: Sequence[int] = step.attributes.get("perm") or range(rank)[::-1]
            return name, perm[axis]
        if kind == "Gather":
            return self._before_gather(step, axis)
        if kind in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            inside = _inside(self.flow.shapes[name], self.flow.shapes[step.outputs[0]], axis)
            return None if inside is None else (name, inside)
        if kind in _SAME:
            return name, axis
        return self._before_elementwise(step, axis)

    def _before_gather(self, step: program.Step, axis: int) -> Place:
        along = step.attributes.get("axis", 0) % len(self.flow.shapes[step.inputs[0]])
        longer = len(self.flow.shapes[step.inputs[1]]) - 1
        return step.inputs[0], axis if axis < along else axis - longer

    def _before_elementwise(self, step: program.Step, axis: int) -> Place | None:
        """The first activation that isn't broadcast along the axis."""
        result = self.flow.shapes[step.outputs[0]]
        for name in step.inputs:
            shape = self.flow.shapes.get(name, ())
            own = axis - len(result) + len(shape)
            if name in self.makers and 0 <= own < len(shape) and shape[own] == result[axis]:
                return name, own
        return None


def _axes(
    step: program.Step, shapes: Sequence[tuple[int, ...]]
) -> Iterator[tuple[Place, list[Place]]]:
    """Of each operand the axis that heads would be on, and those that their width would be on."""
    if step.operator.name == "Einsum":
        left, _, out = step.attributes["equation"].replace(" ", "").partition("->")
        terms = left.split(",")
        if "." in left or len(terms) != 2:
            return
        shared = [x for x in terms[0] if x in terms[1] and x in out]
    for slot, (name, shape) in enumerate(zip(step.inputs, shapes, strict=False)):
        if step.operator.name == "Einsum":
            heads = next((terms[slot].index(x) for x in shared[::-1] if x in terms[slot]), -1)
        else:
            heads = len(shape) - 3
        if heads >= 0 and name and shape[heads] > 1:
            yield (name, heads), [(name, a) for a in range(len(shape))[::-1] if a != heads]


def _inside(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    """The axis before a Reshape that an axis after it is made of; of several the first."""
    first = math.prod(after[:axis])
    last = first * after[axis]
    for place, size in enumerate(before):
        outer = math.prod(before[:place])
        if size > 1 and outer >= first and outer * size <= last:
            return place
    return None


def _containing(before: Sequence[int], after: Sequence[int], axis: int) -> int:
    """The axis before a Reshape of which an axis after it is a part."""
    first = math.prod(after[:axis])
    return max(
        place
        for place, size in enumerate(before)
        if math.prod(before[:place]) <= first and (size > 1 or place == 0)
    )
