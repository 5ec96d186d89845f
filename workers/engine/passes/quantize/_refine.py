"""What is done to codes before they are stored, and what the report says of each layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from modelpress.spec.quantize import QuantizeInt8
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.passes.quantize import _adaround, _bias
from workers.engine.passes.quantize._weights import Layer

Deeds = defaultdict[str, list[str]]
"""By weight: what was done beside rounding to nearest."""


def refine(
    graph: Graph,
    layers: Sequence[Layer],
    step: QuantizeInt8,
    ctx: Context,
    deeds: Deeds,
) -> list[Layer]:
    """Learns roundings and corrects biases, as the step asks; the biases in the graph change."""
    refined = list(layers)
    if step.adaround is None and not step.bias_correction:
        return refined
    assert ctx.train is not None, "the recipe was checked: there is data"
    samples = ctx.train.take(step.samples, ctx.seed)
    if step.adaround is not None:
        refined = _adaround.learn(graph, refined, step.adaround, samples, ctx, deeds)
    if step.bias_correction:
        refined = _bias.correct(graph, refined, samples, ctx, deeds)
    return refined
