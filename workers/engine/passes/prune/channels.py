"""prune.channels: removes whole channels with everything that depends on them.

    Conv [64, 3, 3, 3] -> BatchNormalization [64] -> Conv [128, 64, 3, 3]    becomes
    Conv [32, 3, 3, 3] -> BatchNormalization [32] -> Conv [128, 32, 3, 3]    at fraction 0.5

Which channels go together is found by running the network on labels (graph/channels), whatever its architecture: residual sums, joined
and split branches, depthwise and grouped convolutions, heads of attention. Scores are those of Li et al. 2016 (arXiv 1608.08710) summed
over all weights that go together (DepGraph, arXiv 2301.12900). Differs in: no layer types, no example gradients; what can't be followed
is kept and reported.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from modelpress.spec.prune import PruneChannels
from workers.engine.context import Context
from workers.engine.errors import NothingChanged, Unsupported
from workers.engine.graph import Graph, channels, execute, match, shapes
from workers.engine.graph.channels.plan import Family, Plan, Removed
from workers.engine.graph.channels.surgery import Cost
from workers.engine.passes import _weights
from workers.engine.passes.prune import _importance, _recovery, _selection
from workers.engine.passes.prune._recovery import Round

Shapes = Mapping[str, tuple[int, ...]]


def apply(graph: Graph, step: PruneChannels, ctx: Context) -> Graph:
    """Removes channels until the target is reached.

    Raises:
        NothingChanged: no channel can go; the reasons are in the message.
        Unsupported: the ratio asked for can't be reached.
        BadModel: a weight is not finite.
        Diverged: fine-tuning gave NaN or infinity.
    """
    _weights.turn(graph)
    input_shapes = _input_shapes(graph, ctx)
    before = {name: array.shape for name, array in graph.parameters().items()}
    plan = channels.plan.make(graph, input_shapes)
    reasons = _reasons(graph, plan, step)
    whole = _cost(graph, plan, input_shapes)
    for index in range(1, step.rounds + 1):
        now = Round(index, step.rounds)
        plan = channels.plan.make(graph, input_shapes) if index > 1 else plan
        removed = _removed(graph, plan, step, now, whole, input_shapes, _recovery.part(ctx, now))
        if removed.any():
            channels.surgery.remove(graph, plan, removed, input_shapes)
        _recover(graph, step, now, ctx)
    _cover(graph, before, reasons, ctx)
    _note_cost(whole, _cost(graph, channels.plan.make(graph, input_shapes), input_shapes), ctx)
    return graph


def _input_shapes(graph: Graph, ctx: Context) -> Shapes:
    given = {}
    if ctx.train is not None:
        given = {name: array.shape for name, array in ctx.train.batch([0]).items()}
    return shapes.example_shapes(graph, 1, given)


def _cost(graph: Graph, plan: Plan, input_shapes: Shapes) -> Cost:
    nothing = np.zeros(plan.classes.count, dtype=np.bool_)
    return channels.surgery.cost(graph, plan, nothing, input_shapes)


def _removed(
    graph: Graph,
    plan: Plan,
    step: PruneChannels,
    now: Round,
    whole: Cost,
    input_shapes: Shapes,
    ctx: Context,
) -> Removed:
    """The classes that go in this round."""
    families = [family for family in plan.families if not _is_excluded(graph, family, step)]
    if not families:
        raise NothingChanged(_no_channels(graph, plan, step), hint=_way_out(step))
    scores = _importance.scores(graph, plan, step, ctx)
    if step.fraction is not None:
        share = _share(step.fraction, now)
        removed = _selection.choose(plan, families, scores, step, share)
        if not removed.any() and now.rounds == 1:
            raise NothingChanged(
                f"fraction {step.fraction} removes no channel: layers are too narrow for it, or for "
                f"round_to {step.round_to} and min_channels {step.min_channels}",
                hint="ask for a larger fraction or a smaller round_to",
            )
        return removed

    def least(fraction: float) -> tuple[Removed, float]:
        chosen = _selection.choose(plan, families, scores, step, fraction)
        return chosen, _ratio(step, whole, channels.surgery.cost(graph, plan, chosen, input_shapes))

    asked = step.macs_ratio or step.parameters_ratio or 1.0
    wanted = asked ** (now.index / now.rounds)
    removed, reached = _selection.search(least, wanted, step.max_layer_fraction)
    if reached < wanted:
        raise _unreachable(step, asked, reached)
    return removed


def _share(fraction: float, now: Round) -> float:
    """The fraction of what is left, so that each round takes as much of the whole."""
    before, after = (fraction * index / now.rounds for index in (now.index - 1, now.index))
    return 1.0 - (1.0 - after) / (1.0 - before)


def _ratio(step: PruneChannels, whole: Cost, part: Cost) -> float:
    if step.macs_ratio is not None:
        return whole.macs / max(part.macs, 1)
    return whole.parameters / max(part.parameters, 1)


def _unreachable(step: PruneChannels, asked: float, reached: float) -> Unsupported:
    what = "macs_ratio" if step.macs_ratio is not None else "parameters_ratio"
    return Unsupported(
        f"{what} {asked:g} can't be reached: at most {reached:.3g} with max_layer_fraction {step.max_layer_fraction}, "
        f"round_to {step.round_to} and min_channels {step.min_channels}",
        hint=f"ask for a lower {what}, or allow a higher max_layer_fraction",
    )


def _recover(graph: Graph, step: PruneChannels, now: Round, ctx: Context) -> None:
    if step.fine_tune is None:
        _recovery.refresh(graph, ctx, "whole network")
        return
    _recovery.train_round(graph, execute.as_module(graph), step.fine_tune, ctx, now)


def _is_excluded(graph: Graph, family: Family, step: PruneChannels) -> bool:
    return any(_is_named(graph, name, step) for name, _ in family.axes)


def _is_named(graph: Graph, weight: str, step: PruneChannels) -> bool:
    readers = [use.node.name or "" for use in graph.initializers[weight].uses()]
    return step.excludes(weight, *readers)


def _reasons(graph: Graph, plan: Plan, step: PruneChannels) -> dict[str, str]:
    """Why the outputs of a layer stay, by weight; '' where they may go."""
    reasons = {}
    for layer in match.layers(graph):
        if _is_named(graph, layer.weight, step):
            reasons[layer.weight] = "excluded by the recipe"
        else:
            reasons[layer.weight] = plan.reason(layer.weight, layer.out_axis)
    return reasons


def _no_channels(graph: Graph, plan: Plan, step: PruneChannels) -> str:
    reasons = _reasons(graph, plan, step)
    listed = [f"'{name}': {reason}" for name, reason in reasons.items() if reason][:10]
    return "prune.channels found no channel that can go. " + "; ".join(
        listed or ["the model has no convolution or matrix product"]
    )


def _way_out(step: PruneChannels) -> str:
    return "shorten exclude" if step.exclude else "leave this step out, or use prune.magnitude"


def _cover(
    graph: Graph,
    before: Mapping[str, tuple[int, ...]],
    reasons: Mapping[str, str],
    ctx: Context,
) -> None:
    after = {layer.weight: layer for layer in match.layers(graph)}
    for name, reason in reasons.items():
        now, was = graph.weight(name).shape, before[name]
        if now == was:
            ctx.skipped(name, reason or "none of its channels are among the least worthy")
            continue
        layer = after[name]
        ctx.touched(name, _change(was, now, layer.out_axis, layer.in_axis))
        if reason and was[layer.out_axis] == now[layer.out_axis]:
            ctx.note(f"outputs of '{name}' stay: {reason}")


def _change(was: tuple[int, ...], now: tuple[int, ...], out_axis: int, in_axis: int) -> str:
    """'64 -> 32 channels, of 16 -> 8 inputs'; what stays is left out."""
    parts = []
    if was[out_axis] != now[out_axis]:
        parts.append(f"{was[out_axis]} -> {now[out_axis]} channels")
    if was[in_axis] != now[in_axis]:
        parts.append(f"{was[in_axis]} -> {now[in_axis]} inputs")
    return ", ".join(parts)


def _note_cost(whole: Cost, left: Cost, ctx: Context) -> None:
    ctx.note(
        f"multiply-accumulates {whole.macs:,} -> {left.macs:,} ({whole.macs / max(left.macs, 1):.2f} times fewer), "
        f"parameters {whole.parameters:,} -> {left.parameters:,} ({whole.parameters / max(left.parameters, 1):.2f} times fewer)"
    )
