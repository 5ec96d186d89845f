"""prune.magnitude: zeroes the weights that a criterion values least (Han et al. 2015, arXiv 1506.02626).

    w = [0.9 -0.1 0.4 -0.02]  ->  [0.9 0 0.4 0]        at sparsity 0.5, or with pattern 2:4

In rounds, each followed by fine-tuning with the masks re-applied after every optimizer step: masking gradients alone is not enough
with momentum, Adam or weight decay. Scores are taken anew in each round, from the network as it is then. Biases and normalization are
never pruned. Differs in: exact counts with a seeded tie-break, no threshold from standard deviations; weights are ranked over all
layers (scope 'global', with a cap for each), within each layer or within each output. Criteria: _criteria.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from modelpress.spec.prune import PruneMagnitude
from workers.engine.context import Context
from workers.engine.errors import BadModel, NothingChanged
from workers.engine.graph import Graph, execute, match
from workers.engine.graph.match import Layer
from workers.engine.passes import _recovery, _weights
from workers.engine.passes._recovery import Round
from workers.engine.passes.prune import _controls, _criteria, _masks, _targets
from workers.engine.passes.prune._masked import Masked
from workers.engine.passes.prune._masks import Mask
from workers.engine.passes.prune._targets import Targets

_NO_GAIN = (
    "zeros alone make neither the file smaller nor dense kernels faster: see zipped_bytes, entropy_bytes and "
    "theoretical_bytes for what a coder gains from them"
)


def apply(graph: Graph, step: PruneMagnitude, ctx: Context) -> Graph:
    """Prunes the weights of convolutions and matrix products to the sparsity or pattern asked for.

    Raises:
        NothingChanged: there is nothing to prune, the weights are that sparse already, or an override names no layer.
        BadModel: a weight is not finite, or the initial model has other weights.
        Diverged: fine-tuning gave NaN or infinity.
    """
    ctx, for_controls = _controls.shared(step, ctx)
    _weights.turn(graph)
    targets = _targets.choose(graph, _prunable(graph, step, ctx), step, ctx)
    before = {name: _sparsity(graph, name) for name in targets.layers}
    masks = _masks.none_pruned({name: graph.weight(name) for name in targets.layers})
    changed = False
    for index in range(1, step.rounds + 1):
        now = Round(index, step.rounds)
        masks = _grow(graph, targets, masks, now, ctx)
        changed |= _zero(graph, masks)
        _recover(graph, step, masks, now, ctx)
    if not changed and step.fine_tune is None:
        raise NothingChanged(
            f"prune.magnitude at {_asked(step)} zeroed no weight: that many are zero already",
            hint="ask for a higher sparsity or leave the step out",
        )
    _cover(graph, before, ctx)
    _controls.train_all(graph, step, for_controls, masks)
    return graph


def survey(graph: Graph, ctx: Context) -> None:
    """Lists what could be pruned. Raises as `apply`."""
    _weights.turn(graph)
    for name in _prunable(graph, PruneMagnitude(sparsity=0.5), ctx):
        ctx.touched(name, "its weights can be zeroed")


def _asked(step: PruneMagnitude) -> str:
    return f"pattern {step.pattern}" if step.pattern is not None else f"sparsity {step.sparsity}"


def _prunable(graph: Graph, step: PruneMagnitude, ctx: Context) -> dict[str, Layer]:
    """Layers to prune by their weight, each once; the others are reported with a reason."""
    found: dict[str, Layer] = {}
    for layer in match.layers(graph):
        if step.excludes(layer.weight, layer.node.name or ""):
            ctx.skipped(layer.weight, "excluded by the recipe")
        else:
            found.setdefault(layer.weight, layer)
    _check(graph, list(found), step)
    for name, reason in match.not_layers(graph).items():
        ctx.skipped(name, reason)
    return found


def _check(graph: Graph, names: list[str], step: PruneMagnitude) -> None:
    if not names:
        raise NothingChanged(
            "prune.magnitude found no weight of a convolution or matrix product to prune",
            hint="shorten exclude" if step.exclude else "leave this step out for this model",
        )
    for name in names:
        if not np.isfinite(graph.weight(name)).all():
            raise BadModel(
                f"weight '{name}' has values that are not finite",
                layer=name,
                hint="train the model anew, or exclude the layer",
            )


def _grow(
    graph: Graph, targets: Targets, masks: Mapping[str, Mask], now: Round, ctx: Context
) -> dict[str, Mask]:
    part = now.part(ctx)
    scores = _criteria.scores(graph, list(targets.layers), targets.step, part)
    rng = ctx.random(f"ties/{now.index}")
    return targets.grow(scores, masks, (now.index, now.rounds), rng)


def _zero(graph: Graph, masks: Mapping[str, Mask]) -> bool:
    """Zeroes masked weights; whether any of them was not zero before."""
    changed = False
    for name, mask in masks.items():
        weight = graph.weight(name)
        if np.any(weight[mask]):
            graph.set_weight(name, np.where(mask, np.zeros((), weight.dtype), weight))
            changed = True
    return changed


def _recover(
    graph: Graph, step: PruneMagnitude, masks: Mapping[str, Mask], now: Round, ctx: Context
) -> None:
    """Trains what is left, or at least refits the normalization where there is data."""
    if step.fine_tune is None:
        _recovery.refresh(graph, ctx, "dense weights")
        return
    module = execute.as_module(graph)
    mask = Masked(module, masks)
    _recovery.train_round(graph, module, step.fine_tune, ctx, now, mask.apply, recover=step.recover)


def _sparsity(graph: Graph, name: str) -> float:
    weight = graph.weight(name)
    return 1.0 - np.count_nonzero(weight) / max(weight.size, 1)


def _cover(graph: Graph, before: Mapping[str, float], ctx: Context) -> None:
    for name, was in before.items():
        now, size = _sparsity(graph, name), graph.weight(name).size
        if now == was:
            ctx.skipped(name, f"none of its weights went; {was:.1%} of {size:,} are zero")
        else:
            ctx.touched(name, f"{was:.1%} -> {now:.1%} of {size:,} weights zero")
    ctx.note("biases and normalization parameters are never pruned")
    ctx.note(_NO_GAIN)
