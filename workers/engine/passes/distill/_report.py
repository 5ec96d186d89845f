"""What distillation tells: which weights it moved, by whose answers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from modelpress.spec.distill import Distilling, Recover
from modelpress.spec.step import Step
from workers.engine import teaching
from workers.engine.context import Context
from workers.engine.errors import NothingChanged
from workers.engine.graph import Graph
from workers.engine.teaching import Lesson
from workers.engine.train import TrainLog

Weights = Mapping[str, np.ndarray]


def trained(graph: Graph, step: Step) -> set[str]:
    """Names of the weights that training may change: those that neither they nor a node that reads them is excluded.

    Raises:
        NothingChanged: there is none.
    """
    found = set()
    for name in graph.parameters():
        readers = [user.name or "" for user, _ in graph.initializers[name].uses()]
        if not step.excludes(name, *readers):
            found.add(name)
    if not found:
        raise NothingChanged(
            f"{step.kind} found no weight to train",
            hint="shorten exclude" if step.exclude else "leave this step out for this model",
        )
    return found


def cover(graph: Graph, before: Weights, names: set[str], step: Step, ctx: Context) -> None:
    """Reports each weight.

    Raises:
        NothingChanged: all are what they were.
    """
    if all(np.array_equal(was, graph.weight(name)) for name, was in before.items()):
        raise NothingChanged(
            f"{step.kind} changed no weight: the student answers as its teachers do already",
            hint="put it after steps that change the model, name another student or teacher, or give it labels",
        )
    for name, was in before.items():
        now = graph.weight(name)
        if name not in names:
            ctx.skipped(name, "excluded by the recipe: not trained")
        elif np.array_equal(was, now):
            ctx.skipped(name, "no gradient reached it")
        else:
            ctx.touched(name, f"trained: {now.size:,} weights, {_moved(was, now)}")


def note(lesson: Lesson, log: TrainLog, step: Distilling, ctx: Context) -> None:
    """Says who taught, and how the loss went."""
    share = f"{lesson.share:.0%} of the loss" if lesson.share < 1 else "all of the loss"
    ctx.note(
        f"{share} compares {teaching.described(Recover(distill=step), scores=lesson.has_scores)} with the student's: "
        f"{teaching.course(log)}"
    )
    if lesson.share == 1:
        ctx.note("no label was read: where its teachers are wrong, the student learns that")
    if not lesson.has_scores:
        ctx.note(
            "no output is [samples, classes]: all outputs were compared by their squared difference"
        )


def _moved(was: np.ndarray, now: np.ndarray) -> str:
    before = was.astype(np.float64)
    size, moved = float(np.linalg.norm(before)), float(np.linalg.norm(now - before))
    return f"{moved / size:.2%} of their size" if size > 0 else f"from zero to {moved:.3g}"
