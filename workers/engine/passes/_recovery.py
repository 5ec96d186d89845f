"""Training after a change: a share of the step's progress for each part of it, and fresh statistics where nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from modelpress.spec.distill import Recover
from modelpress.spec.step import FineTune
from workers.engine import teaching, train
from workers.engine.context import Context
from workers.engine.graph import Graph, execute
from workers.engine.graph.execute import GraphModule


@dataclass(frozen=True)
class Round:
    """Which of how many, from 1."""

    index: int
    rounds: int

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"round {self.index} of {self.rounds}"

    def part(self, ctx: Context, *, since: float = 0.0, until: float = 1.0) -> Context:
        """The context of this round, or of a stretch of it."""
        done, share = (self.index - 1) / self.rounds, 1 / self.rounds
        return part(
            ctx, f"round/{self.index}", since=done + since * share, until=done + until * share
        )


def train_round(
    graph: Graph,
    module: GraphModule,
    fine_tune: FineTune,
    ctx: Context,
    now: Round,
    after_step: Callable[[], None] = train.nothing,
    *,
    recover: Recover | None = None,
    since: float = 0.0,
) -> None:
    """Trains the module, which computes the graph, puts its weights into it and notes the losses.

    `recover` says what training goes by, null: by labels. `since` is the share of the round's progress that is over when it begins.

    Raises:
        Diverged: training gave NaN or infinity.
        Unsupported: a teacher does not fit.
    """
    log = teaching.train_by(
        module,
        graph,
        fine_tune,
        now.part(ctx, since=since),
        recover,
        after_step=after_step,
        label=now.label,
    )
    after_step()
    execute.write_back(module, graph)
    if recover is not None and recover.distill is not None:
        ctx.note(f"fine-tuning went by {teaching.described(recover)}")
    ctx.note(f"{now.label}: loss {teaching.course(log)}")


def refresh(graph: Graph, ctx: Context, before: str) -> None:
    """Refits the statistics of normalization, which belong to what was `before`, where there is data."""
    module = execute.as_module(graph)
    if not module.statistics:
        return
    if ctx.train is None:
        ctx.note(f"without data the statistics of BatchNormalization stay those of the {before}")
        return
    batches = train.refresh_batch_norm(module, ctx.train, ctx)
    execute.write_back(module, graph)
    ctx.note(f"statistics of BatchNormalization were refreshed on {batches} batches")


def part(ctx: Context, name: str, *, since: float, until: float) -> Context:
    """The context of a stretch of the step: its own random numbers, its share of the progress."""

    def report(fraction: float, message: str) -> None:
        ctx.report(since + (until - since) * fraction, message)

    return replace(ctx, scope=f"{ctx.scope}/{name}", report=report)
