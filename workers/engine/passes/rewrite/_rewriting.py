"""Puts decompositions in the place of layers, and trains what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from modelpress.spec.rewrite import Rewriting
from workers.engine import layerwise, teaching, train
from workers.engine.context import Context
from workers.engine.graph import Graph, execute
from workers.engine.passes import _recovery
from workers.engine.passes.rewrite import _chain
from workers.engine.passes.rewrite._decomposition import Factors, Rank
from workers.engine.passes.rewrite._layers import Candidate

_LAYERWISE = 0.5
"""Share of the progress, where the network is trained as a whole too."""


def perform(
    graph: Graph,
    candidates: Sequence[Candidate],
    chosen: Mapping[str, tuple[Rank, Factors]],
    step: Rewriting,
    ctx: Context,
) -> None:
    """Rewrites the chosen layers in place, reports each, and trains as the step says.

    Raises:
        Diverged: training gave NaN or infinity.
        Unsupported: a teacher does not fit.
    """
    before, teacher = _parameters(graph), graph.clone()
    outputs: list[str] = []
    made: list[str] = []
    for candidate in candidates:
        name = candidate.subject.name
        if name not in chosen:
            ctx.skipped(name, "the target is met with it as it is")
            continue
        rank, factors = chosen[name]
        made += _chain.replace(graph, candidate.subject.layers, factors)
        outputs += candidate.subject.outputs
        ctx.touched(name, change(candidate, rank, factors))
        if factors.warning:
            ctx.note(f"'{name}': {factors.warning}")
    after = _parameters(graph)
    ctx.note(f"weights {before:,} -> {after:,} ({before / after:.2f} times fewer)")
    recover(graph, teacher, outputs, made, step, ctx)


def change(candidate: Candidate, rank: Rank, factors: Factors) -> str:
    """'[64, 32, 3, 3] -> vertical [20, 32, 3, 1], ...; 18,432 -> 5,760 weights; relative error of the weight 12.3%'."""
    weight = candidate.decomposition.weight
    rows = ", ".join(f"{slot.name} {list(slot.shape)}" for slot in factors.slots)
    size = candidate.decomposition.size(rank)
    norm = max(float(np.linalg.norm(weight)), 1e-30)
    error = float(np.linalg.norm(weight - factors.product)) / norm
    return f"{list(weight.shape)} -> {rows}; {weight.size:,} -> {size:,} weights; relative error of the weight {error:.1%}"


def _parameters(graph: Graph) -> int:
    return sum(array.size for array in graph.parameters().values())


def recover(
    graph: Graph,
    teacher: Graph,
    outputs: Sequence[str],
    made: Sequence[str],
    step: Rewriting,
    ctx: Context,
) -> None:
    """Trains the new layers, then the network; where neither is asked for, normalization gets the statistics of what it sees now."""
    if step.layerwise is not None:
        until = 1.0 if step.fine_tune is None else _LAYERWISE
        log = layerwise.fit(
            graph,
            teacher,
            [(name, name) for name in outputs],
            step.layerwise,
            _recovery.part(ctx, "layerwise", since=0.0, until=until),
            train=made,
        )
        _tell(log, "layerwise", ctx)
    if step.fine_tune is not None:
        since = 0.0 if step.layerwise is None else _LAYERWISE
        module = execute.as_module(graph)
        around = _recovery.part(ctx, "fine-tune", since=since, until=1.0)
        log = teaching.train_by(module, graph, step.fine_tune, around, step.recover)
        execute.write_back(module, graph)
        _tell(log, f"fine-tuning by {teaching.described(step.recover)}", ctx)
    if step.layerwise is None and step.fine_tune is None:
        _recovery.refresh(graph, ctx, "layers before")


def _tell(log: train.TrainLog, what: str, ctx: Context) -> None:
    ctx.note(f"{what}: loss {teaching.course(log)}")
