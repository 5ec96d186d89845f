"""Places of a student and of its teacher that learn from each other: named, or matched by position and shape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from modelpress.spec.distill import DistillFeatures
from workers.engine.errors import NothingChanged, Unsupported
from workers.engine.graph import Graph
from workers.engine.passes.distill import _blocks

_POSITIONS = 3
"""Axes that a value has at least where channels are at positions."""

_CHANNELS_SECOND = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "BatchNormalization",
        "InstanceNormalization",
    }
)
_AS_THEIR_OPERAND = frozenset(
    {
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Clip",
        "Sigmoid",
        "Tanh",
        "Elu",
        "Selu",
        "Gelu",
        "Mish",
        "HardSigmoid",
        "HardSwish",
        "Softplus",
        "Add",
        "Mul",
        "Concat",
        "Dropout",
        "Identity",
    }
)
"""Operators whose answer has its axes where the first operand has them."""

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Pair:
    """Two values, and the axis along which they hold channels."""

    student: str
    teacher: str
    own: Shape
    theirs: Shape
    axis: int

    @property
    def fits(self) -> bool:
        """Whether both have as many channels."""
        return self.own == self.theirs

    def __str__(self) -> str:
        return f"{self.student} {list(self.own)} <- {self.teacher} {list(self.theirs)}"


def find(
    student: Graph, teacher: Graph, step: DistillFeatures, own: Shapes, theirs: Shapes
) -> list[Pair]:
    """The pairs that the step names, or those that are matched. Shapes are of all values, of one sample.

    Raises:
        NothingChanged: none could be matched.
        Unsupported: a name is of no value, or two shapes can't be compared.
    """
    named = [(_value(student, p.student), _value(teacher, p.teacher)) for p in step.pairs]
    asked = named or _matched(student, teacher, own, theirs)
    if step.method == "attention" and not named:
        asked = [pair for pair in asked if len(own[pair[0]]) >= _POSITIONS]
    channels = {value.name or "": _channels(value, own) for value in _values(student)}
    pairs = [_pair(a, b, own[a], theirs[b], channels[a], step) for a, b in asked]
    if not pairs:
        raise NothingChanged(
            "no place of the student has the resolution of a place of the teacher",
            hint="name pairs, or use distill.logits",
        )
    return pairs


def _value(graph: Graph, name: str) -> str:
    """The value that a name of a node or of a value stands for."""
    for node in graph.nodes:
        outputs = [value.name or "" for value in node.outputs]
        if node.name == name or name in outputs:
            return name if name in outputs else outputs[0]
    some = ", ".join(node.name or "" for node in graph.nodes[:8])
    raise Unsupported(
        f"no node and no value is called '{name}'; the first nodes are {some}",
        layer=name,
        hint="look the names up in the model's inspection",
    )


def _matched(student: Graph, teacher: Graph, own: Shapes, theirs: Shapes) -> list[tuple[str, str]]:
    """The last place of each resolution that both have, in the order of the student."""
    ours, others = _last_of_resolution(student, own), _last_of_resolution(teacher, theirs)
    return [(ours[key], others[key]) for key in ours if key in others]


def _last_of_resolution(graph: Graph, shapes: Shapes) -> dict[Shape, str]:
    """Places by their resolution. One of a single position is left out: as a vector behind it, it is there once more."""
    samples = shapes[graph.inputs[0].name or ""][0]
    found: dict[Shape, str] = {}
    for value in _blocks.places(graph):
        shape = shapes.get(value.name or "", ())
        if len(shape) < 2 or shape[0] != samples:
            continue
        positions = [
            size for axis, size in enumerate(shape) if axis not in (0, _channels(value, shapes))
        ]
        if not positions or math.prod(positions) > 1:
            found[len(shape), *positions] = value.name or ""
    return found


def _values(graph: Graph) -> Iterator[ir.Value]:
    for node in graph.nodes:
        yield from node.outputs


def _channels(value: ir.Value, shapes: Shapes) -> int:
    """The axis along which a value holds channels: the second of maps, signals [N, C, L] too, and the last of tokens [N, T, C]."""
    if len(shapes.get(value.name or "", ())) != _POSITIONS:
        return 1
    node = value.producer()
    while node is not None and node.op_type in _AS_THEIR_OPERAND and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return 1 if node is not None and node.op_type in _CHANNELS_SECOND else 2


def _pair(a: str, b: str, own: Shape, theirs: Shape, channels: int, step: DistillFeatures) -> Pair:
    differing = [i for i, (x, y) in enumerate(zip(own, theirs, strict=False)) if x != y]
    axis = differing[0] if differing else channels
    comparable = len(own) == len(theirs) and len(own) >= 2 and len(differing) <= 1
    if step.method == "attention":
        comparable = comparable and len(own) >= _POSITIONS
    if not comparable and step.method != "relational":
        need = "one axis at most" + (", and have positions" if step.method == "attention" else "")
        raise Unsupported(
            f"'{a}' of the student is {list(own)} and '{b}' of the teacher {list(theirs)}: for method '{step.method}' they may differ in {need}",
            layer=a,
            hint="name other pairs, or use method 'relational'",
        )
    return Pair(a, b, own, theirs, axis)
