"""What a class of channels is worth: a score of each slice, summed over all weights that go with it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from modelpress.spec.prune import PruneChannels
from workers.engine import forward, train
from workers.engine.context import Context
from workers.engine.errors import BadModel
from workers.engine.graph import Graph, execute, match
from workers.engine.graph.channels.plan import Plan

Scores = npt.NDArray[np.float64]
"""[classes], never negative; higher is worth more."""

_NORMS = (
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "RMSNormalization",
)
_BATCH = 32


def scores(graph: Graph, plan: Plan, step: PruneChannels, ctx: Context) -> Scores:
    """The worth of each class.

    A family without what the criterion looks at, such as a scale of normalization, is ranked by l2 among its own.

    Raises:
        BadModel: a weight or a gradient is not finite.
    """
    if step.criterion == "random":
        return ctx.random("channels").random(plan.classes.count)
    if step.criterion == "taylor":
        return _checked(_summed(plan, _gradient_products(graph, step, ctx)), "gradient")
    found = _CRITERIA[step.criterion](graph, plan)
    if step.criterion in ("bn_scale", "geometric_median"):
        return _with_fallback(plan, found, _l2(graph, plan), step.criterion, ctx)
    return _checked(found, "weight")


def _checked(found: Scores, what: str) -> Scores:
    if not np.isfinite(found).all():
        raise BadModel(
            f"a {what} is not finite, so channels can't be ranked",
            hint="train the model anew, or use criterion 'random'",
        )
    return found


def _summed(plan: Plan, elements: Mapping[str, npt.NDArray[np.floating]]) -> Scores:
    """Sums elements over every slice of a class. elements: of each weight, not negative."""
    total: Scores = np.zeros(plan.classes.count)
    for (name, axis), touched in plan.axes.items():
        if name in elements:
            array = elements[name]
            others = tuple(a for a in range(array.ndim) if a != axis)
            np.add.at(total, touched, array.sum(axis=others, dtype=np.float64))
    return total


def _layer_weights(graph: Graph) -> dict[str, npt.NDArray[np.float32]]:
    """Weights of two or more axes, which multiply; biases and scales are worth little by themselves."""
    return {
        name: array.astype(np.float32)
        for name, array in graph.parameters().items()
        if sum(size > 1 for size in array.shape) > 1
    }


def _l1(graph: Graph, plan: Plan) -> Scores:
    return _summed(plan, {name: np.abs(w) for name, w in _layer_weights(graph).items()})


def _l2(graph: Graph, plan: Plan) -> Scores:
    squares = {name: np.square(w) for name, w in _layer_weights(graph).items()}
    return np.sqrt(_summed(plan, squares))


def _bn_scale(graph: Graph, plan: Plan) -> Scores:
    """The factor that normalization gives a channel (Liu et al. 2017)."""
    scales = {n.inputs[1].name or "" for n in graph.nodes if n.op_type in _NORMS and n.inputs[1]}
    known = {name: graph.weight(name) for name in scales if name in graph.initializers}
    return _summed(plan, {name: np.abs(w.astype(np.float32)) for name, w in known.items()})


def _geometric_median(graph: Graph, plan: Plan) -> Scores:
    """The distances of a filter to all others of its layer: one in their midst can be replaced (He et al. 2019)."""
    total: Scores = np.zeros(plan.classes.count)
    for layer in match.layers(graph):
        touched = plan.axes.get((layer.weight, layer.out_axis))
        if touched is not None:
            rows = np.moveaxis(graph.weight(layer.weight), layer.out_axis, 0)
            filters = torch.from_numpy(rows.reshape(len(rows), -1).astype(np.float32))
            np.add.at(total, touched, torch.cdist(filters, filters).sum(1).double().numpy())
    return total


_CRITERIA = {"l1": _l1, "l2": _l2, "bn_scale": _bn_scale, "geometric_median": _geometric_median}


def _with_fallback(
    plan: Plan, found: Scores, norms: Scores, criterion: str, ctx: Context
) -> Scores:
    result = found.copy()
    for family in plan.families:
        if not found[family.classes].any():
            result[family.classes] = norms[family.classes]
            ctx.note(f"'{family.axes[0][0]}' has nothing for criterion '{criterion}': ranked by l2")
    return _checked(result, "weight")


def _gradient_products(
    graph: Graph, step: PruneChannels, ctx: Context
) -> dict[str, npt.NDArray[np.floating]]:
    """|weight * gradient of the loss| of each weight: what the loss changes by without it, to first order."""
    assert ctx.train is not None, "the recipe was checked: taylor has labelled data"
    module = execute.as_module(graph).to(ctx.device).eval()
    loss = train.classification_loss(ctx.source)
    drawn = ctx.random("taylor").permutation(ctx.train.samples)[: step.samples]
    fixed = forward.fixed_batch(ctx.source, ctx.train)
    for indices in np.array_split(drawn, -(-len(drawn) // _BATCH)):
        batch = forward.run(module, ctx.train, indices, ctx.device, fixed)
        (loss(batch) * (len(indices) / len(drawn))).backward()  # type: ignore[no-untyped-call]
    return {
        name: (weight * weight.grad).detach().abs().float().cpu().numpy()
        for name, weight in module.weights.items()
        if weight.grad is not None
    }
