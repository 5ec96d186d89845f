"""The student: the network as it came, another uploaded one, a smaller copy of the source, or one of the zoo."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from modelpress.spec.architecture import Architecture
from modelpress.spec.distill import Distilling, Student
from modelpress.spec.prune import PruneChannels
from workers.engine import initialize, losses, teachers, zoo
from workers.engine.context import Context, Coverage
from workers.engine.errors import NothingChanged, Unsupported
from workers.engine.graph import Graph, edit, element_types, shapes
from workers.engine.passes.distill import _blocks
from workers.engine.passes.prune import channels

_CHANNELS = (1, 3, 4)
_ENDS = {
    losses.Scores.PROBABILITIES: "Softmax",
    losses.Scores.LOG_PROBABILITIES: "LogSoftmax",
    losses.Scores.INDEPENDENT: "Sigmoid",
}


def make(graph: Graph, step: Distilling, ctx: Context) -> Graph:
    """The network that learns; the graph itself where the step names no other.

    Raises:
        NothingChanged: no channel or no block of the source can go.
        Unsupported: the model in the role has other inputs or outputs than the source, or the source takes no image that the zoo could.
    """
    asked = step.student
    if asked is None:
        return graph
    student = graph
    if asked.role is not None:
        student = _uploaded(asked.role, ctx)
    elif asked.architecture is not None:
        return _of_the_zoo(asked.architecture, ctx)
    elif asked.is_copy:
        student = _copy(asked, ctx)
    if asked.weights == "fresh":
        student = initialize.fresh(student, ctx.random("student"))
        ctx.note("the student began with new random weights")
    return student


def _copy(asked: Student, ctx: Context) -> Graph:
    student = ctx.source.clone()
    if asked.depth is not None:
        _shorten(student, asked.depth, ctx)
    if asked.width is not None:
        student = _narrowed(student, asked.width, ctx)
    return student


def _narrowed(graph: Graph, width: float, ctx: Context) -> Graph:
    """With a share of the channels of each layer, the largest ones (prune.channels)."""
    own = Coverage()
    fraction = 1.0 - width
    step = PruneChannels(fraction=fraction, max_layer_fraction=max(0.9, fraction))
    narrow = channels.apply(graph, step, replace(ctx, coverage=own, report=lambda *_: None))
    ctx.note(f"the student is a copy of the source with {width:.0%} of the channels")
    for note in own.notes:
        ctx.note(f"student: {note}")
    return narrow


def _shorten(graph: Graph, depth: float, ctx: Context) -> None:
    """Takes out blocks, evenly over the network."""
    given = {} if ctx.train is None else {n: a.shape for n, a in ctx.train.batch([0]).items()}
    found = _blocks.removable(graph, shapes.infer(graph, shapes.example_shapes(graph, given=given)))
    gone = round((1.0 - depth) * len(found))
    if not gone:
        raise NothingChanged(
            f"of {len(found)} blocks whose input and output have one shape, depth {depth:g} takes out none",
            hint="ask for a lower depth, or for a width" if found else "ask for a width",
        )
    places = np.floor((np.arange(gone) + 0.5) * len(found) / gone).astype(int)
    removed = [found[place] for place in places]
    _blocks.remove(graph, removed)
    names = ", ".join(itertools.chain.from_iterable(block.layers for block in removed))
    ctx.note(
        f"the student is a copy of the source without {gone} of {len(found)} blocks whose input and output have one shape: those of {names}"
    )


def _of_the_zoo(asked: Architecture, ctx: Context) -> Graph:
    """A small network that takes the source's image and answers its classes, as the source does.

    Raises:
        Unsupported: the source takes no image [N, channels, height, width], or is no classifier.
    """
    source = ctx.source
    found = teachers.shapes_of(source, ctx)
    inputs, outputs = ([found[v.name or ""] for v in vs] for vs in (source.inputs, source.outputs))
    is_image = len(inputs) == 1 and len(inputs[0]) == 4 and not _channels_are_last(inputs[0])
    if not is_image or len(outputs) != 1 or len(outputs[0]) != 2:
        raise Unsupported(
            f"{asked.name} takes one image [channels, height, width] and answers [classes], but the model has the inputs "
            f"{[list(shape[1:]) for shape in inputs][:8]} and the outputs {[list(shape[1:]) for shape in outputs][:8]}",
            hint="take a narrower or shallower copy of the model as the student",
        )
    student = zoo.build(
        asked,
        inputs[0][1:],
        outputs[0][1],
        ctx.random("student"),
        input_name=source.inputs[0].name or "",
        output_name=source.outputs[0].name or "",
    )
    _end_as(student, losses.kind(source.outputs[0]))
    for own, theirs in zip(
        (*student.inputs, *student.outputs), (*source.inputs, *source.outputs), strict=True
    ):
        own.shape = theirs.shape.copy() if theirs.shape is not None else None
    ctx.note(f"the student is {asked.name} of width {asked.width:g} and depth {asked.depth:g}")
    return student


def _channels_are_last(shape: Sequence[int]) -> bool:
    return shape[3] in _CHANNELS and shape[1] not in _CHANNELS


def _end_as(student: Graph, kind: losses.Scores) -> None:
    """Makes logits what the source answers: probabilities, or their logarithms."""
    if kind is losses.Scores.LOGITS:
        return
    logits = student.outputs[0]
    name, node = logits.name or "", logits.producer()
    assert node is not None
    logits.name = student.unused_name(f"{name}_logits")
    axis = {} if kind is losses.Scores.INDEPENDENT else {"axis": 1}
    end = edit.insert_after(student, node, _ENDS[kind], [logits], attributes=axis)
    scores = end.outputs[0]
    scores.name, scores.type = name, logits.type
    student.model.graph.outputs[0] = scores


def _uploaded(role: str, ctx: Context) -> Graph:
    """The model in a role, with the names that the source gives its inputs and outputs.

    Raises:
        Unsupported: these have other types or shapes than those of the source.
    """
    student = ctx.models[role].clone()
    for what in ("inputs", "outputs"):
        ours, theirs = getattr(ctx.source, what), getattr(student, what)
        if [_signature(v) for v in ours] != [_signature(v) for v in theirs]:
            raise Unsupported(
                f"the student '{role}' has the {what} {[_signature(v) for v in theirs][:8]}, but those of the model are "
                f"{[_signature(v) for v in ours][:8]}: it can't take its place",
                layer=role,
                hint="export the student with the inputs and outputs of the model",
            )
        if orders := teachers.other_order(ours, theirs):
            raise Unsupported(
                f"the student '{role}' has the {what} {orders[1]}, but the model has them in another order, {orders[0]}: it can't take its place",
                layer=role,
                hint="export the student with them in the order of the model",
            )
        _rename(student, theirs, [value.name or "" for value in ours])
    ctx.note(f"the student is the model in the role '{role}', in the place of the uploaded one")
    return student


def _signature(value: ir.Value) -> tuple[str, tuple[int | str, ...]]:
    kind = element_types.of(value)
    sizes = [size if isinstance(size, int) else "?" for size in value.shape or ()]
    return (kind.name if kind is not None else "?", tuple(sizes))


def _rename(student: Graph, values: tuple[ir.Value, ...], names: list[str]) -> None:
    """Gives values these names; who bore one of them before gets another."""
    for value, name in zip(values, names, strict=True):
        if value.name == name:
            continue
        for node in student.nodes:
            for other in node.outputs:
                if other.name == name:
                    other.name = student.unused_name(f"{name}_before")
        if name in student.initializers:
            other = student.initializers[name]
            student.model.graph.initializers.pop(name)
            other.name = student.unused_name(f"{name}_before")
            student.model.graph.register_initializer(other)
        value.name = name
