"""distill.logits: a student learns the class scores of its teachers (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).

    student's scores <- T^2 * KL(softmax(teachers / T) || softmax(student / T)), and labels

The student is the network as it came to the step, or takes its place (_student.py). Losses: divergence.py; training: teaching.py.
"""

from __future__ import annotations

from modelpress.spec.distill import DistillLogits
from workers.engine.context import Context
from workers.engine.graph import Graph, execute
from workers.engine.passes.distill import _report, _student
from workers.engine.teaching import Lesson


def apply(graph: Graph, step: DistillLogits, ctx: Context) -> Graph:
    """Trains the student.

    Raises:
        NothingChanged: there is no weight to train, none changed, or no smaller copy can be made.
        Unsupported: a teacher or the student has other inputs, outputs or classes, or samples can't be varied as asked.
        BadData, Diverged: as `train.fit`.
    """
    student = _student.make(graph, step, ctx)
    names, before = _report.trained(student, step), student.parameters()
    lesson = Lesson(student, step.training, ctx, distill=step, label="distillation")
    module = execute.as_module(student)
    for name, weight in module.weights.items():
        weight.requires_grad_(name in names)
    log = lesson.teach(module)
    execute.write_back(module, student)
    _report.cover(student, before, names, step, ctx)
    _report.note(lesson, log, step, ctx)
    return student


def survey(graph: Graph, ctx: Context) -> None:
    """Lists what could be trained. Raises as `apply`."""
    for name in sorted(_report.trained(graph, DistillLogits())):
        ctx.touched(name, "can be trained on what teachers answer")
