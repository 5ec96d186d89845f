"""What a class of channels is worth: a score of each slice, summed over all weights that go with it.

    l1                 sum |w|                       Li et al. 2016 (arXiv 1608.08710)
    l2                 sqrt(sum w^2)                 over the whole class, as DepGraph sums a group (arXiv 2301.12900)
    bn_scale           sum |gamma|                   Liu et al. 2017 (arXiv 1708.06519)
    geometric_median   sum of distances to the other filters of the layer      He et al. 2019 (arXiv 1811.00250)
    taylor             E[(sum w * g)^2]              Molchanov et al. 2019 (arXiv 1906.10771), eq. 8; the mean over batches
    activation         1 - APoZ                      Hu et al. 2016 (arXiv 1607.03250); _activity.py
    random             uniform

The sum of w * g over a class is what the loss changes by without the class, to first order; it is taken before it is squared, and
squared before the mean, which for a trained network is near zero. Sums, not means: the weights of a class that touches many layers are
all lost. Families are compared by scores over their mean (_selection.py), or wide layers would be worth more for their size alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from modelpress.spec.prune import PruneChannels
from workers.engine import forward, losses
from workers.engine.context import Context
from workers.engine.errors import BadModel
from workers.engine.graph import Graph, execute, match
from workers.engine.graph.channels.plan import Plan
from workers.engine.passes.prune import _activity, _slimming

Scores = npt.NDArray[np.float64]
"""[classes], never negative; higher is worth more."""

_BATCH = 32
_ROWS = 1024


def scores(graph: Graph, plan: Plan, step: PruneChannels, ctx: Context) -> Scores:
    """The worth of each class.

    A family without what the criterion looks at, such as a scale of normalization, is ranked by l2 among its own.

    Raises:
        BadModel: a weight, a gradient or an activation is not finite.
        BadData, Unsupported: as `losses.classification`.
    """
    match step.criterion:
        case "random":
            return ctx.random("channels").random(plan.classes.count)
        case "taylor":
            return _checked(_taylor(graph, plan, step, ctx), "gradient")
        case "l1":
            return _checked(_l1(graph, plan), "weight")
        case "l2":
            return _checked(_l2(graph, plan), "weight")
        case "activation":
            found = _checked(_activity.worth(graph, plan, step, ctx), "activation")
        case "bn_scale":
            found = _checked(_bn_scale(graph, plan), "weight")
        case "geometric_median":
            found = _checked(_geometric_median(graph, plan), "weight")
    return _with_fallback(plan, found, _checked(_l2(graph, plan), "weight"), step.criterion, ctx)


def _checked(found: Scores, what: str) -> Scores:
    if not np.isfinite(found).all():
        raise BadModel(
            f"a {what} is not finite, so channels can't be ranked",
            hint="train the model anew, or use criterion 'random'",
        )
    return found


def _summed(plan: Plan, elements: Mapping[str, npt.NDArray[np.floating]]) -> Scores:
    """Sums the elements of each weight over every slice of a class."""
    total: Scores = np.zeros(plan.classes.count)
    for name, axis, touched in plan.touched:
        if name in elements:
            array = elements[name]
            others = tuple(a for a in range(array.ndim) if a != axis)
            np.add.at(total, touched, array.sum(axis=others, dtype=np.float64))
    return total


def _layer_weights(graph: Graph) -> dict[str, npt.NDArray[np.float64]]:
    """Weights of two or more axes, which multiply; biases and scales are worth little by themselves.

    In float64, where squares of large ones are finite.
    """
    return {
        name: array.astype(np.float64)
        for name, array in graph.parameters().items()
        if sum(size > 1 for size in array.shape) > 1
    }


def _l1(graph: Graph, plan: Plan) -> Scores:
    return _summed(plan, {name: np.abs(w) for name, w in _layer_weights(graph).items()})


def _l2(graph: Graph, plan: Plan) -> Scores:
    squares = {name: np.square(w) for name, w in _layer_weights(graph).items()}
    return np.sqrt(_summed(plan, squares))


def _bn_scale(graph: Graph, plan: Plan) -> Scores:
    """The factor that normalization gives a channel."""
    found = {name: graph.weight(name).astype(np.float32) for name in _slimming.scales(graph)}
    return _summed(plan, {name: np.abs(scale) for name, scale in found.items()})


def _geometric_median(graph: Graph, plan: Plan) -> Scores:
    """The distances of a filter to all others of its layer: one in their midst can be replaced."""
    total: Scores = np.zeros(plan.classes.count)
    pinned = plan.classes.is_pinned()
    for layer in match.layers(graph):
        touched = plan.axes.get((layer.weight, layer.out_axis))
        if touched is not None and not pinned[touched].all():
            rows = np.moveaxis(graph.weight(layer.weight), layer.out_axis, 0)
            np.add.at(total, touched, _distances(rows.reshape(len(rows), -1).astype(np.float64)))
    return total


def _distances(rows: npt.NDArray[np.float64]) -> Scores:
    """The sum of the distances of each row to all others. rows: [n, k]"""
    filters = torch.from_numpy(rows)
    parts = [torch.cdist(part, filters).sum(1) for part in torch.split(filters, _ROWS)]
    found: Scores = torch.cat(parts).numpy()
    return found


def _with_fallback(
    plan: Plan, found: Scores, norms: Scores, criterion: str, ctx: Context
) -> Scores:
    result = found.copy()
    bare = [family for family in plan.families if not found[family.classes].any()]
    for family in bare:
        result[family.classes] = norms[family.classes]
    if bare:
        names = ", ".join(f"'{family.axes[0][0]}'" for family in bare[:5])
        more = f" and {len(bare) - 5} more" if len(bare) > 5 else ""
        ctx.note(f"nothing for criterion '{criterion}' in {names}{more}: ranked by l2")
    return result


def _taylor(graph: Graph, plan: Plan, step: PruneChannels, ctx: Context) -> Scores:
    assert ctx.train is not None, "the recipe was checked: taylor has labelled data"
    module = execute.as_module(graph).to(ctx.device).eval()
    loss = losses.classification(ctx.source)
    drawn = ctx.random("taylor").permutation(ctx.train.samples)[: step.samples]
    fixed = forward.fixed_batch(ctx.source, ctx.train)
    total: Scores = np.zeros(plan.classes.count)
    for indices in np.array_split(drawn, -(-len(drawn) // _BATCH)):
        module.zero_grad(set_to_none=True)
        loss(forward.run(module, ctx.train, indices, ctx.device, fixed)).backward()  # type: ignore[no-untyped-call]
        lost = _summed(plan, _products(module))
        total += np.square(lost) * (len(indices) / len(drawn))
    return total


def _products(module: execute.GraphModule) -> dict[str, npt.NDArray[np.floating]]:
    """The product of each weight that the loss reaches with its gradient."""
    return {
        name: (weight * weight.grad).detach().float().cpu().numpy()
        for name, weight in module.weights.items()
        if weight.grad is not None
    }
