"""distill.features: a student learns values inside its teacher, beside class scores and labels.

    student: x -> [blocks] -> h -> adapter -> h'   ~   h of the teacher <- [blocks] <- x

An adapter is a 1x1 convolution that fits the student's channels to the teacher's (FitNets, arXiv 1412.6550); it is trained along and thrown
away. Differs in: one training with a sum of losses instead of hints first; no adapter where widths are equal. Losses: _agreement.py;
which places: _pairs.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modelpress.spec.distill import DistillFeatures
from workers.engine import teachers
from workers.engine.context import Context
from workers.engine.graph import Graph, execute
from workers.engine.layerwise import Probed
from workers.engine.passes.distill import _agreement, _pairs, _report, _student
from workers.engine.passes.distill._pairs import Pair
from workers.engine.teaching import Inner, Lesson


def apply(graph: Graph, step: DistillFeatures, ctx: Context) -> Graph:
    """Trains the student.

    Raises:
        NothingChanged: there is no weight to train, none changed, no place to pair, or no smaller copy can be made.
        Unsupported: a teacher, the student or a pair of places does not fit.
        BadData, Diverged: as `train.fit`.
    """
    student = _student.make(graph, step, ctx)
    (teacher,) = teachers.find(step, ctx)
    names, before = _report.trained(student, step), student.parameters()
    pairs = _pairs.find(
        student, teacher, step, *(teachers.shapes_of(g, ctx) for g in (student, teacher))
    )
    module = Hinted(student, pairs, step, ctx.generator("adapters"))
    for name, weight in module.probed.network.weights.items():
        weight.requires_grad_(name in names)
    lesson = Lesson(
        student,
        step.training,
        ctx,
        distill=step,
        label="features",
        inner=_inner(teacher, pairs, step),
    )
    log = lesson.teach(module)
    execute.write_back(module.probed.network, student)
    _report.cover(student, before, names, step, ctx)
    _report.note(lesson, log, step, ctx)
    _note(pairs, step, ctx)
    return student


def survey(graph: Graph, ctx: Context) -> None:
    """Lists what could be trained. Raises as `apply`."""
    for name in sorted(_report.trained(graph, DistillFeatures())):
        ctx.touched(name, "can be trained on values inside a teacher")


class Hinted(nn.Module):
    """A student that answers its outputs and then its inner values, as wide as the teacher's where values are compared."""

    def __init__(
        self, student: Graph, pairs: Sequence[Pair], step: DistillFeatures, rng: torch.Generator
    ) -> None:
        super().__init__()
        self.probed = Probed(student, [pair.student for pair in pairs], outputs=True)
        fits = step.method == "hint"
        self.adapters = nn.ModuleList(
            Adapter(pair, rng) if fits and not pair.fits else nn.Identity() for pair in pairs
        )

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs, then inner values."""
        answers = self.probed(*inputs)
        border = len(answers) - len(self.adapters)
        inner = zip(self.adapters, answers[border:], strict=True)
        return (*answers[:border], *(adapter(value) for adapter, value in inner))


class Adapter(nn.Module):
    """A linear map of channels, the same at all positions; begins as by Glorot and Bengio."""

    def __init__(self, pair: Pair, rng: torch.Generator) -> None:
        super().__init__()
        self._axis = pair.axis
        own, theirs = pair.own[pair.axis], pair.theirs[pair.axis]
        drawn = torch.randn(theirs, own, generator=rng) * (2 / (own + theirs)) ** 0.5
        self.weight, self.bias = nn.Parameter(drawn), nn.Parameter(torch.zeros(theirs))

    def forward(self, x: Tensor) -> Tensor:
        """X with the teacher's number of channels."""
        mapped = nn.functional.linear(x.movedim(self._axis, -1), self.weight, self.bias)
        return mapped.movedim(-1, self._axis)


def _inner(teacher: Graph, pairs: Sequence[Pair], step: DistillFeatures) -> Inner:
    probed = Probed(teacher, [pair.teacher for pair in pairs], outputs=False).requires_grad_(False)

    def loss(student: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        each = [_apart(a, b, pair, step) for a, b, pair in zip(student, theirs, pairs, strict=True)]
        return step.share * torch.stack(each).mean()

    return Inner(len(pairs), probed, loss)


def _apart(student: Tensor, teacher: Tensor, pair: Pair, step: DistillFeatures) -> Tensor:
    match step.method:
        case "hint":
            return _agreement.hint(student, teacher)
        case "attention":
            return _agreement.attention(student, teacher, pair.axis)
        case "relational":
            return _agreement.relational(student, teacher)


def _note(pairs: Sequence[Pair], step: DistillFeatures, ctx: Context) -> None:
    how = "named" if step.pairs else "matched by resolution"
    ctx.note(
        f"{len(pairs)} {'place' if len(pairs) == 1 else 'places'} learned by method '{step.method}' at weight {step.share:g}, {how}: "
        + "; ".join(map(str, pairs[:16]))
    )
    adapted = [pair for pair in pairs if not pair.fits] if step.method == "hint" else []
    if adapted:
        ctx.note(
            f"the student's channels were fitted to the teacher's by layers that are not part of the result: {len(adapted)}"
        )
