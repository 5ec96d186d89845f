"""What removing channels of each layer alone costs the network: known from an analysis, or measured by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from modelpress.spec.analyze import AnalyzeSensitivity
from modelpress.spec.prune import PruneChannels
from modelpress.spec.sensitivity import Sensitivity
from workers.engine.context import Context, Coverage
from workers.engine.graph import Graph, match
from workers.engine.graph.channels.plan import Key, Plan
from workers.engine.passes.analyze import sensitivity
from workers.engine.passes.prune._levels import Levels, Line


def levels(graph: Graph, plan: Plan, step: PruneChannels, ctx: Context) -> Levels | None:
    """Of all families, where the step asks for them.

    Raises:
        Unsupported: nothing of the network can be measured.
    """
    if step.scope != "sensitivity":
        return None
    known = ctx.sensitivity
    makers = _makers(graph, plan)
    if known is not None:
        missing = known.missing("channels", _shapes(graph, makers), ())
        if not missing:
            ctx.note(f"what layers cost alone was known, from {known.samples:,} training samples")
            return Levels(_lines(known, makers))
        ctx.note(f"what layers cost alone was measured anew: in what is known, {missing}")
    found = _measured(graph, step, ctx)
    ctx.note(f"what layers cost alone was measured on {found.samples:,} training samples")
    return Levels(_lines(found, makers))


def _measured(graph: Graph, step: PruneChannels, ctx: Context) -> Sensitivity:
    asked = AnalyzeSensitivity(
        methods=("channels",), samples=min(step.samples, 4096), exclude=step.exclude
    )
    return sensitivity.measure(graph, asked, replace(ctx, coverage=Coverage()))


def _makers(graph: Graph, plan: Plan) -> dict[str, Key]:
    """By the weights that make the channels of a family, what it is known by."""
    outputs = {(layer.weight, layer.out_axis) for layer in match.layers(graph)}
    return {
        name: family.key
        for family in reversed(plan.families)
        for name, axis in family.axes
        if (name, axis) in outputs
    }


def _shapes(graph: Graph, makers: Mapping[str, Key]) -> dict[str, tuple[int, ...]]:
    """Of one weight of each family."""
    first = {key: name for name, key in reversed(list(makers.items()))}
    return {name: graph.weight(name).shape for name in first.values()}


def _lines(found: Sensitivity, makers: Mapping[str, Key]) -> dict[Key, Line]:
    errors = found.errors("channels")
    return {makers[name]: Line.of(of) for name, of in errors.items() if name in makers}
