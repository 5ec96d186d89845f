"""prune.channels: removes whole channels with everything that depends on them.

    Conv [64, 3, 3, 3] -> BatchNormalization [64] -> Conv [128, 64, 3, 3]    becomes
    Conv [32, 3, 3, 3] -> BatchNormalization [32] -> Conv [128, 32, 3, 3]    at fraction 0.5

Which channels go together is found by running the network on labels (graph/channels), whatever its architecture: residual sums, joined
and split branches, depthwise and grouped convolutions, heads of attention. Scores are summed over all weights that go together, as in
DepGraph (arXiv 2301.12900). Differs in: no layer types, no example gradients; what can't be followed is kept and reported.

In rounds: sparse training where it is asked for, scores (_importance), the search for what meets the target (_goal), removal,
fine-tuning. Limits and targets count from the network before the first round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from modelpress.spec.prune import PruneChannels
from workers.engine.context import Context
from workers.engine.errors import NothingChanged
from workers.engine.graph import Graph, channels, execute, shapes
from workers.engine.graph.channels.plan import Key, Plan
from workers.engine.graph.channels.surgery import Cost
from workers.engine.passes import _lookahead, _recovery, _settle, _weights
from workers.engine.passes._recovery import Round
from workers.engine.passes.prune import (
    _alone,
    _controls,
    _goal,
    _importance,
    _layers,
    _selection,
    _sensitivity,
    _slimming,
)
from workers.engine.passes.prune._clock import Clock
from workers.engine.passes.prune._goal import Goal
from workers.engine.passes.prune._levels import Levels
from workers.engine.passes.prune._selection import Candidates

_SPARSE_SHARE = 0.5
"""Of the progress of a round, where there is sparse training."""


@dataclass(frozen=True)
class _Work:
    """What stays the same from round to round."""

    graph: Graph
    step: PruneChannels
    ctx: Context
    shapes: Mapping[str, tuple[int, ...]]
    """Of the inputs."""
    totals: Mapping[Key, int]
    """Classes of each family before the first round."""
    goal: Goal
    levels: Levels | None
    """With scope 'sensitivity': what fractions of each layer cost."""
    trail: _alone.Trail


def apply(graph: Graph, step: PruneChannels, ctx: Context) -> Graph:
    """Removes channels until the target is reached.

    Raises:
        NothingChanged: no channel can go, a fraction is too small, an override has no effect, or there is nothing to train sparse.
        Unsupported: the ratio asked for can't be reached, and the step does not say best_effort.
        BadModel: a weight is not finite.
        Diverged: training gave NaN or infinity.
    """
    ctx, for_controls = _controls.shared(step, ctx)
    _weights.turn(graph)
    input_shapes = _input_shapes(graph, ctx)
    _settle_weights(graph, input_shapes, ctx)
    before, whole = _layers.Before.of(graph), graph.clone()
    plan = _plan(graph, step, input_shapes)
    reasons = _layers.reasons(graph, plan, step)
    _layers.note_attention(plan, step, ctx)
    goal = _open(graph, plan, step, input_shapes, ctx)
    levels = _sensitivity.levels(graph, plan, step, ctx)
    work = _Work(
        graph, step, ctx, input_shapes, _selection.totals(plan), goal, levels, _alone.Trail()
    )
    try:
        _prune(work, plan)
    finally:
        if goal.clock is not None:
            goal.clock.close()
    left = channels.plan.again(graph, input_shapes, plan)
    _layers.cover(graph, before, reasons, work.totals, left, ctx)
    _layers.note_statistics(plan, left, ctx)
    _explain(whole, plan, work)
    _note_cost(goal.whole, _cost(graph, left, input_shapes), ctx)
    _controls.train_all(graph, step, for_controls)
    return graph


def survey(graph: Graph, ctx: Context) -> None:
    """Lists which channels could go, and why others stay. Raises as `apply`, or Undetermined."""
    step = PruneChannels(fraction=0.5)
    _weights.turn(graph)
    input_shapes = _lookahead.input_shapes(graph)
    _settle_weights(graph, input_shapes, ctx)
    plan = channels.plan.make(graph, input_shapes)
    _layers.foresee(graph, plan, step, ctx)
    if not _layers.free(graph, plan, step):
        raise NothingChanged(_layers.no_channels(graph, plan, step))


def _settle_weights(graph: Graph, input_shapes: shapes.Shapes, ctx: Context) -> None:
    settled = _settle.weights(graph, input_shapes)
    if settled:
        ctx.note(
            f"weights of {len(settled)} layers, which were computed from others at each run, were computed once, so that their channels "
            "can go; training changes them as they are"
        )


def _input_shapes(graph: Graph, ctx: Context) -> dict[str, tuple[int, ...]]:
    given = {}
    if ctx.train is not None:
        given = {name: array.shape for name, array in ctx.train.batch([0]).items()}
    return shapes.example_shapes(graph, 1, given)


def _plan(graph: Graph, step: PruneChannels, input_shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    return channels.plan.make(
        graph, input_shapes, attention=step.attention, normalized=step.normalized
    )


def _open(
    graph: Graph,
    plan: Plan,
    step: PruneChannels,
    input_shapes: Mapping[str, tuple[int, ...]],
    ctx: Context,
) -> Goal:
    """The goal; there is something that may go, or else this raises NothingChanged."""
    if not _layers.free(graph, plan, step):
        raise NothingChanged(
            _layers.no_channels(graph, plan, step),
            hint="shorten exclude"
            if step.exclude
            else "leave this step out, or use prune.magnitude",
        )
    clock = Clock(graph, ctx, input_shapes) if step.latency_ratio is not None else None
    limits = _layers.limits(_layers.reasons(graph, plan, step))
    return Goal(step, _cost(graph, plan, input_shapes), input_shapes, limits, clock)


def _cost(graph: Graph, plan: Plan, input_shapes: Mapping[str, tuple[int, ...]]) -> Cost:
    return channels.surgery.cost(graph, plan, _goal.nothing(plan), input_shapes)


def _prune(work: _Work, plan: Plan) -> None:
    step, ctx, graph = work.step, work.ctx, work.graph
    equal: _importance.Scores = np.ones(plan.classes.count)
    work.goal.check(graph, _candidates(work, plan, equal, 1.0, ctx), ctx)
    for index in range(1, step.rounds + 1):
        now = Round(index, step.rounds)
        part = now.part(ctx)
        _slimming.train_sparse(graph, step, now.part(ctx, until=_SPARSE_SHARE))
        plan = channels.plan.again(graph, work.shapes, plan) if index > 1 else plan
        scores = _importance.scores(graph, plan, step, part)
        candidates = _candidates(work, plan, scores, index / step.rounds, part)
        removed = work.goal.find(graph, candidates, now, ctx)
        if removed.any():
            channels.surgery.remove(graph, plan, removed, work.shapes)
            work.trail.follow(plan, removed)
        _recover(work, now)


def _candidates(
    work: _Work, plan: Plan, scores: _importance.Scores, done: float, ctx: Context
) -> Candidates:
    free = _layers.free(work.graph, plan, work.step)
    own = _layers.overridden(work.graph, free, work.step)
    members = _selection.members(free, work.totals, own)
    ties = ctx.random("ties").permutation(plan.classes.count)
    return Candidates(plan, members, scores, ties, work.step, done, work.levels)


def _recover(work: _Work, now: Round) -> None:
    graph, step, ctx = work.graph, work.step, work.ctx
    if step.fine_tune is None:
        _recovery.refresh(graph, ctx, "whole network")
        return
    since = _SPARSE_SHARE if step.sparse_training is not None else 0.0
    _recovery.train_round(
        graph,
        execute.as_module(graph),
        step.fine_tune,
        ctx,
        now,
        recover=step.recover,
        since=since,
    )


def _explain(whole: Graph, plan: Plan, work: _Work) -> None:
    """Leaves for the report networks of which one layer alone is pruned. whole: the graph that `plan` was made of."""
    coverage = work.ctx.coverage
    own = channels.plan.again(whole, work.shapes, plan)
    coverage.prepared = whole
    touched = [touched.layer for touched in coverage.touched]
    gone = work.trail.gone(own)
    coverage.networks = _alone.networks(whole, own, gone, work.shapes, touched)


def _note_cost(whole: Cost, left: Cost, ctx: Context) -> None:
    ctx.note(
        f"multiply-accumulates {whole.macs:,} -> {left.macs:,} ({whole.macs / max(left.macs, 1):.2f} times fewer), "
        f"parameters {whole.parameters:,} -> {left.parameters:,} ({whole.parameters / max(left.parameters, 1):.2f} times fewer)"
    )
