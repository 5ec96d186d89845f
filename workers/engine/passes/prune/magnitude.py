"""prune.magnitude: zeroes the weights of smallest magnitude (Han et al. 2015, arXiv 1506.02626).

    w = [0.9 -0.1 0.4 -0.02]  ->  [0.9 0 0.4 0]        at sparsity 0.5

In rounds on the cubic schedule of Zhu and Gupta (arXiv 1710.01878), each followed by fine-tuning with the masks re-applied after every
optimizer step: masking gradients alone is not enough with momentum, Adam or weight decay. Biases and normalization are never pruned.
Differs in: exact counts with a seeded tie-break, no threshold from standard deviations; weights are ranked by magnitude over all
layers (scope 'global', with a cap for each) or within each layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from modelpress.spec.prune import PruneMagnitude
from workers.engine.context import Context
from workers.engine.errors import BadModel, NothingChanged
from workers.engine.graph import Graph, execute, match
from workers.engine.graph.execute import GraphModule
from workers.engine.passes import _weights
from workers.engine.passes.prune import _masks, _recovery
from workers.engine.passes.prune._masks import Mask

_NO_GAIN = (
    "zeros alone make neither the file smaller nor dense kernels faster: see zipped_bytes, entropy_bytes and "
    "theoretical_bytes for what a coder gains from them"
)


def apply(graph: Graph, step: PruneMagnitude, ctx: Context) -> Graph:
    """Prunes the weights of convolutions and matrix products to the sparsity asked for.

    Raises:
        NothingChanged: there is nothing to prune, or the weights are that sparse already.
        BadModel: a weight is not finite.
        Diverged: fine-tuning gave NaN or infinity.
    """
    _weights.turn(graph)
    names = _prunable(graph, step, ctx)
    before = _sparsities(graph, names)
    masks = _masks.none_pruned({name: graph.weight(name) for name in names})
    changed = False
    for index in range(1, step.rounds + 1):
        masks = _grow(graph, step, masks, index, ctx)
        changed |= _zero(graph, masks)
        _recover(graph, step, masks, index, ctx)
    if not changed and step.fine_tune is None:
        raise NothingChanged(
            f"prune.magnitude at sparsity {step.sparsity} zeroed no weight: that many are zero already",
            hint="ask for a higher sparsity or leave the step out",
        )
    _cover(graph, before, ctx)
    return graph


def _prunable(graph: Graph, step: PruneMagnitude, ctx: Context) -> list[str]:
    """Names of the weights to prune, each once; the others are reported with a reason."""
    names = []
    for layer in match.layers(graph):
        if step.excludes(layer.weight, layer.node.name or ""):
            ctx.skipped(layer.weight, "excluded by the recipe")
        elif layer.weight not in names:
            names.append(layer.weight)
    _check(graph, names, step)
    for name, reason in match.not_layers(graph).items():
        ctx.skipped(name, reason)
    return names


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
    graph: Graph, step: PruneMagnitude, masks: Mapping[str, Mask], index: int, ctx: Context
) -> dict[str, Mask]:
    weights = {name: graph.weight(name) for name in masks}
    target = _masks.sparsity_in_round(step.sparsity, index, step.rounds)
    rng = ctx.random(f"ties/{index}")
    if step.scope == "layer":
        return _masks.by_layer(weights, masks, target, rng)
    return _masks.overall(weights, masks, target, rng, cap=step.max_layer_sparsity)


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
    graph: Graph, step: PruneMagnitude, masks: Mapping[str, Mask], index: int, ctx: Context
) -> None:
    """Trains what is left, or at least refits the normalization where there is data."""
    if step.fine_tune is None:
        _recovery.refresh(graph, ctx, "dense weights")
        return
    module = execute.as_module(graph)
    mask = Masked(module, masks)
    _recovery.train_round(
        graph, module, step.fine_tune, ctx, _recovery.Round(index, step.rounds), mask.apply
    )


class Masked:
    """Keeps pruned weights of a module at zero. Masks become buffers beside the weights, on their device."""

    def __init__(self, module: GraphModule, masks: Mapping[str, Mask]) -> None:
        self._module = module
        self._buffers = {name: f"mask_{i}" for i, name in enumerate(masks)}
        for name, buffer in self._buffers.items():
            module.register_buffer(buffer, torch.from_numpy(masks[name]), persistent=False)

    @torch.no_grad()
    def apply(self) -> None:
        """Sets every pruned weight to 0, exactly."""
        weights = self._module.weights
        for name, buffer in self._buffers.items():
            weights[name].masked_fill_(self._module.get_buffer(buffer), 0.0)


def _sparsities(graph: Graph, names: list[str]) -> dict[str, float]:
    return {name: _sparsity(graph, name) for name in names}


def _sparsity(graph: Graph, name: str) -> float:
    weight = graph.weight(name)
    return 1.0 - np.count_nonzero(weight) / max(weight.size, 1)


def _cover(graph: Graph, before: Mapping[str, float], ctx: Context) -> None:
    for name, was in before.items():
        now, size = _sparsity(graph, name), graph.weight(name).size
        if now == was:
            ctx.skipped(
                name, f"no weight of it is among the smallest; {was:.1%} of {size:,} are zero"
            )
        else:
            ctx.touched(name, f"{was:.1%} -> {now:.1%} of {size:,} weights zero")
    ctx.note("biases and normalization parameters are never pruned")
    ctx.note(_NO_GAIN)
