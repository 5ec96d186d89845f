"""Which layers a step that codes weights may change."""

from __future__ import annotations

import numpy as np

from modelpress.spec.step import Step
from workers.engine.context import Context
from workers.engine.errors import BadModel, NothingChanged
from workers.engine.graph import Graph, match
from workers.engine.graph.match import Layer


def layers(graph: Graph, step: Step, ctx: Context) -> dict[str, Layer]:
    """Layers by their weight, each once; what is left alone is reported with the reason.

    Raises:
        NothingChanged: there is none.
        BadModel: a weight is not finite.
    """
    found: dict[str, Layer] = {}
    for layer in match.layers(graph):
        if step.excludes(layer.weight, layer.name):
            ctx.skipped(layer.weight, "excluded by the recipe")
        else:
            found.setdefault(layer.weight, layer)
    for name, reason in match.not_layers(graph).items():
        ctx.skipped(name, reason)
    if not found:
        raise NothingChanged(
            f"{step.kind} found no weight of a convolution or matrix product",
            hint="shorten exclude" if step.exclude else "leave this step out for this model",
        )
    for name in found:
        check_finite(graph, name)
    return found


def check_finite(graph: Graph, name: str) -> None:
    """Raises BadModel where a weight, or a bias, has NaN or infinity."""
    if not np.isfinite(graph.weight(name).astype(np.float32)).all():
        raise BadModel(
            f"'{name}' has values that are not finite",
            layer=name,
            hint="train the model anew, or exclude the layer",
        )
