"""Rules of operators that compute element by element, move elements or reduce them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workers.engine.graph import program, tensors
from workers.engine.graph.channels import _shadow
from workers.engine.graph.channels._book import Node
from workers.engine.graph.channels._shadow import Shadow
from workers.engine.graph.ops import Call

Tensor = torch.Tensor

_CPU = torch.device("cpu")


def elementwise(node: Node) -> list[Shadow]:
    """Operands are broadcast; elements that meet go together."""
    shape = tuple(node.results[0].shape)
    axis = _common_axis(node, len(shape))
    if axis < 0:
        for slot in node.slots():
            if node.is_initializer(slot):
                node.pin_axes(slot, why="meets values without channels")
        return node.blanks()
    vectors = [v for slot in node.slots() if (v := _met(node, slot, axis, shape)) is not None]
    for vector in vectors[1:]:
        node.unify(vectors[0], vector)
    labels = vectors[0]
    for vector in vectors[1:]:
        labels = torch.where(labels != 0, labels, vector)
    return [
        _shadow.lined(shape, axis, labels) if tuple(r.shape) == shape else blank
        for r, blank in zip(node.results, node.blanks(), strict=True)
    ]


def cast_like(node: Node) -> list[Shadow]:
    """The second operand gives its type only."""
    return node.carried()


def _common_axis(node: Node, rank: int) -> int:
    """Of the axes on which activations have channels, the one with the most; where only initializers meet, the last; -1 for none."""
    if all(node.is_initializer(slot) for slot in node.slots()):
        wide = [axis for axis, size in enumerate(node.results[0].shape) if size > 1]
        return max(wide, default=-1)
    sizes: dict[int, int] = {}
    for slot in node.slots():
        axis = node.varying(slot)
        if axis >= 0:
            shape = node.shape(slot)
            sizes[axis + rank - len(shape)] = shape[axis]
    return max(sizes, key=lambda axis: sizes[axis]) if sizes else -1


def _met(node: Node, slot: int, axis: int, shape: tuple[int, ...]) -> Tensor | None:
    """An operand's labels along an axis of the result; null where it is broadcast along it."""
    own = axis - len(shape) + len(node.shape(slot))
    if node.is_initializer(slot):
        node.pin_axes(slot, keep=own)
    elif node.varying(slot) != own:
        node.pin(slot, "has channels on another axis")
    if own < 0 or node.shape(slot)[own] < shape[axis]:
        return None
    return node.along(slot, own)


def movement(node: Node) -> list[Shadow]:
    """The operator itself is run on the labels."""
    prefer = max((node.varying(slot) for slot in node.slots()), default=-1)
    host = node.step.operator.host
    shadows = {s: node.shadow(s, prefer) for s in node.slots() if s not in host}
    if all(shadow.labels is None for shadow in shadows.values()):
        return node.blanks()
    operands = [
        shadows[slot].full() if slot in shadows else operand
        for slot, operand in enumerate(node.operands)
    ]
    labels, axis = node.book.labels, node.kept_axis
    closed = [_shadow.close(full, labels, axis) for full in _rerun(node, operands)]
    node.choose(max(shadow.axis for shadow in closed))
    return closed


def _rerun(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    call = Call(_CPU, outputs=len(node.step.outputs))
    results = program.Machine(_CPU).apply(node.step, list(operands), call)
    return results if isinstance(results, tuple) else (results,)


def cut(node: Node) -> list[Shadow]:
    """Slice. Every n-th channel is not followed."""
    axis = node.varying(0)
    steps = [1] if not node.has(4) else tensors.ints(node.operands[4])
    if axis >= 0 and axis in _slice_axes(node) and set(steps) != {1}:
        place = _slice_axes(node).index(axis)
        if steps[place] != 1:
            node.pin(0, "takes every n-th channel")
            return node.blanks()
    return movement(node)


def _slice_axes(node: Node) -> list[int]:
    rank = len(node.shape(0))
    if not node.has(3):
        return list(range(node.operands[1].numel()))
    return [axis % rank for axis in tensors.ints(node.operands[3])]


def pad(node: Node) -> list[Shadow]:
    """Elements that are added have no channel; beside an axis of channels nothing changes."""
    source = node.shadow(0)
    shape = tuple(node.results[0].shape)
    if source.labels is None or shape[source.axis] == source.shape[source.axis]:
        return [Shadow(shape, source.axis, source.labels)]
    if node.attribute("mode", "constant") != "constant":
        node.pin(0, "repeats its channels at the border")
        return node.blanks()
    edges = tensors.ints(node.operands[1])
    axes = tensors.ints(node.operands[3]) if node.has(3) else list(range(len(source.shape)))
    place = [axis % len(source.shape) for axis in axes].index(source.axis)
    before, after = edges[place], edges[place + len(axes)]
    if before < 0 or after < 0:
        node.pin(0, "cuts its channels at the border")
        return node.blanks()
    padded = torch.nn.functional.pad(source.labels, [before, after])
    return [_shadow.lined(shape, source.axis, padded)]


def gather(node: Node) -> list[Shadow]:
    """x: [..., K, ...] by indices. A table that is looked up keeps its rows."""
    rank = len(node.shape(0))
    axis = int(node.attribute("axis", 0)) % rank
    shape = tuple(node.results[0].shape)
    wide = [a for a, size in enumerate(node.shape(0)) if size > 1 and a != axis]
    source = node.shadow(0, wide[-1] if wide else axis)
    if source.labels is None:
        return [_shadow.blank(shape)]
    if source.axis != axis:
        longer = len(node.shape(1)) - 1
        return [
            _shadow.lined(shape, source.axis + (longer if source.axis > axis else 0), source.labels)
        ]
    places = node.book.graph.initializers.get(node.step.inputs[1])
    if node.is_initializer(0) or places is None or len(node.shape(1)) > 1:
        node.pin(0, "looks channels up by their number")
        return [_shadow.blank(shape)]
    assert places.const_value is not None
    found = source.labels[tensors.from_ir(places.const_value).long()]
    if found.numel() == 1:
        node.book.labels.pin(found.reshape(1), _shadow.SINGLE)
        return [_shadow.blank(shape)]
    return [_shadow.lined(shape, axis, found)]


def reduction(node: Node) -> list[Shadow]:
    """Channels end where they are reduced over; a mean is then that of the channels that are kept."""
    rank = len(node.shape(0))
    source = node.shadow(0)
    axes = _reduced(node, rank)
    if source.labels is None:
        return node.blanks()
    if source.axis in axes:
        node.summarise(source.labels)
        return node.blanks()
    gone = 0 if node.attribute("keepdims", 1) else sum(axis < source.axis for axis in axes)
    return [_shadow.lined(tuple(r.shape), source.axis - gone, source.labels) for r in node.results]


def _reduced(node: Node, rank: int) -> list[int]:
    if node.has(1):
        given = tensors.ints(node.operands[1])
    elif "axis" in node.step.operator.attributes:
        given = [int(node.attribute("axis", 0))]
    else:
        given = []
    if not given and not node.attribute("noop_with_empty_axes", 0):
        return list(range(rank))
    return [axis % rank for axis in given]


def place(node: Node) -> list[Shadow]:
    """ArgMax and TopK answer places, which change where channels go."""
    axis = int(node.attribute("axis", -1 if node.kind == "TopK" else 0)) % len(node.shape(0))
    if node.varying(0) == axis:
        node.pin(0, "answers the places of its elements")
        return node.blanks()
    if node.kind == "TopK":
        source = node.shadow(0)
        return [Shadow(tuple(r.shape), source.axis, source.labels) for r in node.results]
    return reduction(node)


def nothing(node: Node) -> list[Shadow]:
    """The result has no channels, and the operands may lose theirs."""
    return node.blanks()


def unknown(node: Node) -> list[Shadow]:
    """What has no rule keeps all that it reads."""
    for slot in node.slots():
        node.pin(slot, "has no rule for channels")
    return node.blanks()
