"""Training beside teachers: their answers as soft labels (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).

loss = (1 - alpha) * CE(labels, student) + alpha * divergence(teachers, student)

What a divergence is: divergence.py. Teachers see what the student sees, are never trained, and answer as they would in use. A model that
is no classifier learns all outputs of its teachers by the squared difference, over their variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from modelpress.spec.distill import Distill, Recover, Teacher
from modelpress.spec.distill._teaching import SOURCE, WITH_LABELS
from modelpress.spec.step import FineTune
from workers.engine import data, divergence, forward, losses, teachers, train, views
from workers.engine.context import Context
from workers.engine.errors import BadData, Unsupported
from workers.engine.graph import Graph, execute
from workers.engine.losses import Batch
from workers.engine.teachers import Teachers
from workers.engine.train import TrainLog


def fit(
    graph: Graph,
    fine_tune: FineTune,
    ctx: Context,
    *,
    teachers: Sequence[Graph],
    distill: Distill,
    label: str = "distillation",
) -> TrainLog:
    """Trains a graph's weights in place against teachers, of which it may be none itself.

    Raises:
        BadData: alpha is below 1 and there are no labels, or a label is no class.
        Diverged: as `train.fit`.
        Unsupported: a teacher has other inputs or classes, samples can't be varied as asked, no output holds floats, or what is asked needs class
            scores and there are none.
    """
    module = execute.as_module(graph)
    log = fit_module(module, graph, fine_tune, ctx, given=teachers, distill=distill, label=label)
    execute.write_back(module, graph)
    return log


def train_by(
    module: nn.Module,
    of: Graph,
    fine_tune: FineTune,
    ctx: Context,
    how: Recover | None,
    *,
    after_step: Callable[[], None] = train.nothing,
    label: str = "fine-tune",
    skip: int = 0,
) -> TrainLog:
    """Trains a module that computes `of` by its labels, or by what `how` says. Raises as `fit`."""
    dataset = ctx.train
    assert dataset is not None, "the recipe was checked: training has data"
    if how is None or how.distill is None:
        return train.fit(
            module, dataset, fine_tune, ctx, after_step=after_step, label=label, skip=skip
        )
    return fit_module(
        module,
        of,
        fine_tune,
        ctx,
        distill=how.distill,
        label=label,
        after_step=after_step,
        skip=skip,
    )


def described(how: Recover | None, *, scores: bool = True) -> str:
    """In words, what training goes by; `scores`: whether class scores are compared, or all outputs."""
    if how is None or how.distill is None:
        return "the labels"
    asked = how.distill
    named = ", ".join(_called(teacher) for teacher in asked.teachers)
    mean = " (geometric mean)" if asked.mean == "geometric" and len(asked.teachers) > 1 else ""
    words = [
        f"the answers of {named}{mean}"
        + (f" at temperature {asked.temperature:g}" if scores else "")
    ]
    words += ["the right class and the others apart (dkd)"] if asked.variant == "dkd" else []
    words += ["standardised"] if asked.standardize else []
    words += ["on varied samples"] if asked.augment is not None else []
    return ", ".join(words)


def course(log: TrainLog) -> str:
    """In words, how the loss went."""
    return f"{log.losses[0]:.4g} in the first epoch, {log.losses[-1]:.4g} in the last"


def _called(teacher: Teacher) -> str:
    name = "the uploaded model" if teacher.role == SOURCE else f"'{teacher.role}'"
    return name if teacher.weight == 1 else f"{name} (weight {teacher.weight:g})"


def fit_module(
    module: nn.Module,
    of: Graph,
    fine_tune: FineTune,
    ctx: Context,
    *,
    distill: Distill,
    given: Sequence[Graph] | None = None,
    label: str = "distillation",
    after_step: Callable[[], None] = train.nothing,
    skip: int = 0,
) -> TrainLog:
    """Trains a module that takes the inputs of `of` and answers its outputs. Teachers null are those of the roles. Raises as `fit`."""
    lesson = Lesson(of, fine_tune, ctx, distill=distill, given=given, label=label, skip=skip)
    return lesson.teach(module, after_step)


@dataclass(frozen=True)
class Inner:
    """Values inside the networks that are to agree, beside the answers."""

    count: int
    """How many the student's module answers after its outputs, and `teacher` in all."""
    teacher: nn.Module
    loss: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
    """Of those of the student and those of the teacher."""


class Taught(nn.Module):
    """A student that answers its own outputs and then those of its teachers, of the same view of the samples.

    Without teachers their answers come as the last input, and are passed on.
    """

    def __init__(
        self, student: nn.Module, beside: Sequence[nn.Module], view: views.Views | None
    ) -> None:
        super().__init__()
        self.student, self.beside, self._view = student, nn.ModuleList(beside), view

    def train(self, mode: bool = True) -> Taught:
        """Teachers stay as they answer in use."""
        super().train(mode)
        self.beside.eval()
        return self

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """All answers, one after another."""
        if not self.beside:
            return (*self.student(*inputs[:-1]), inputs[-1])
        if self._view is not None:
            inputs = self._view.take(inputs)
        with torch.no_grad():
            soft = [answer for teacher in self.beside for answer in teacher(*inputs)]
        return (*self.student(*inputs), *soft)


class Lesson:
    """One training of one student. Raises as `fit`, when it is made or when it is taught."""

    def __init__(
        self,
        student: Graph,
        fine_tune: FineTune,
        ctx: Context,
        *,
        distill: Distill,
        given: Sequence[Graph] | None = None,
        label: str = "distillation",
        skip: int = 0,
        inner: Inner | None = None,
    ) -> None:
        assert ctx.train is not None, "the recipe was checked: training has data"
        self._dataset = ctx.train
        self._graphs = list(given) if given is not None else teachers.find(distill, ctx)
        self._check(student, ctx, distill)
        self._fixed = teachers.fixed([student, *self._graphs], self._dataset)
        self._ctx = replace(ctx, source=self._fixed or student)
        self._fine_tune, self._distill, self._inner = fine_tune, distill, inner
        self._label, self._step = label, skip
        self._steps = fine_tune.epochs * train.steps_in_epoch(self._dataset, fine_tune)
        self._kinds = [losses.kind(value) for value in student.outputs]
        self._hard = losses.classification(student)
        self.has_scores = all(teachers.has_scores(g, ctx) for g in (student, *self._graphs))
        if not self.has_scores:
            _check_outputs(distill)
        self.share = self._teachers_share()
        self._view = self._open_view()

    def teach(
        self, module: nn.Module, after_step: Callable[[], None] = train.nothing
    ) -> train.TrainLog:
        """Trains the module, which answers the student's outputs and then its inner values."""
        skip = self._step

        def count() -> None:
            after_step()
            self._step += 1

        taught, dataset = self._prepared(module)
        return train.fit(
            taught,
            dataset,
            self._fine_tune,
            self._ctx,
            loss=self._loss,
            after_step=count,
            label=self._label,
            skip=skip,
        )

    def _prepared(self, module: nn.Module) -> tuple[Taught, data.Dataset]:
        """The student beside its teachers, or beside what they answered once where that stays the same."""
        group = Teachers(self._graphs, self._distill, scores=self.has_scores)
        stays = self._view is None and self._inner is None and self.has_scores
        if stays and self._fine_tune.epochs > 1:
            size = forward.fixed_batch(self._ctx.source, self._dataset)
            name = self._ctx.scope.replace("/", "-") + "-" + self._label.replace(" ", "-")
            answered = teachers.remember(group, self._dataset, self._ctx, size, name)
            return Taught(module, (), None), answered
        beside = [group] if self._inner is None else [group, self._inner.teacher]
        return Taught(module, beside, self._view), self._dataset

    def _loss(self, batch: Batch) -> Tensor:
        count = self._inner.count if self._inner is not None else 0
        outputs, end = batch.outputs, len(batch.outputs) - count
        first = len(self._kinds)
        own, soft = replace(batch, outputs=outputs[:first]), outputs[first + count : end]
        loss = self._answers(own, soft)
        if self._inner is not None:
            loss = loss + self._inner.loss(outputs[first : first + count], outputs[end:])
        return loss

    def _answers(self, own: Batch, soft: tuple[Tensor, ...]) -> Tensor:
        """The loss of the student's outputs, by teachers and labels."""
        if not self.has_scores:
            return difference(own.outputs, soft)
        if self.share == 0:
            return self._by_labels(own)
        index = losses.scores_index(own.outputs)
        student = divergence.logits(own.outputs[index], self._kinds[index])
        taught = self.share * self._divergence(student, soft[0], own.labels)
        return taught if self.share == 1 else taught + (1 - self.share) * self._by_labels(own)

    def _by_labels(self, own: Batch) -> Tensor:
        if self._view is None or own.labels is None:
            return self._hard(own)
        return self._view.labels(lambda labels: self._hard(replace(own, labels=labels)), own.labels)

    def _divergence(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        asked = self._distill
        if asked.standardize:
            student = divergence.standardized(student)
        if asked.variant == "kd":
            return divergence.kd(student, teacher, asked.temperature)
        mixed = self._view is not None and self._view.mixed is not None
        right = teacher.argmax(1) if labels is None or mixed else labels
        risen = (self._step + 1) / max(1.0, asked.warm_up * self._steps)
        return min(1.0, risen) * divergence.dkd(
            student,
            teacher,
            right,
            asked.temperature,
            target_weight=asked.target_weight,
            others_weight=asked.others_weight,
        )

    def _check(self, student: Graph, ctx: Context, distill: Distill) -> None:
        names = [teacher.role for teacher in distill.teachers]
        if len(names) != len(self._graphs):
            names = [str(place) for place in range(1, len(self._graphs) + 1)]
        teachers.check(student, dict(zip(names, self._graphs, strict=True)), distill, ctx)

    def _teachers_share(self) -> float:
        """Of the loss.

        Raises:
            BadData: labels have a share, and there are none.
        """
        alpha, has_labels = self._distill.alpha, self._dataset.labels is not None
        if alpha is None:
            return WITH_LABELS if has_labels and self.has_scores else 1.0
        if alpha < 1 and not has_labels:
            raise BadData(
                f"alpha {alpha:g} leaves {1 - alpha:.3g} of the loss to labels, but the dataset has none",
                hint="add an array 'labels', or set alpha to 1",
            )
        return alpha

    def _open_view(self) -> views.Views | None:
        augment = self._distill.augment
        if augment is None:
            return None
        if self._fixed is not None:
            raise Unsupported(
                "samples are varied a batch at a time, but the student or a teacher runs one fixed number of them",
                hint="export it with a free batch size, or leave augment out",
            )
        return views.Views(augment, self._ctx.random(f"{self._label}/views"))


def _check_outputs(distill: Distill) -> None:
    """Raises Unsupported where something is asked that only class scores have."""
    asked = {
        f"variant '{distill.variant}'": distill.variant != "kd",
        "standardize": distill.standardize,
        f"mean '{distill.mean}'": distill.mean != "arithmetic",
        f"alpha {distill.alpha}": distill.learns_labels,
    }
    for option, is_asked in asked.items():
        if is_asked:
            raise Unsupported(
                f"{option} is for class scores, but no output of the model is [samples, classes]: all outputs are compared with the teacher's",
                hint="leave it out: what is learned are the outputs of the teacher, by their squared difference",
            )


def difference(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Squared difference of all float outputs, over the variance of the teacher's.

    Raises:
        Unsupported: there is none.
    """
    parts = [
        (ours.float() - theirs.float()).square().mean() / theirs.float().var().clamp_min(1e-12)
        for ours, theirs in zip(student, teacher, strict=True)
        if ours.is_floating_point()
    ]
    if not parts:
        seen = ", ".join(str(ours.dtype).removeprefix("torch.") for ours in student)
        raise Unsupported(
            f"no output of the model holds floats, they are {seen}: training has nothing to go by",
            hint="export the model with its scores as an output, before ArgMax or TopK",
        )
    return torch.stack(parts).mean()
