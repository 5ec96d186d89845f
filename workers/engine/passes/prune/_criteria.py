"""What a single weight is worth: scores beside the weights, of which the highest are kept.

    large_final          |w|                    Han et al. 2015
    small_final         -|w|                    the control of it
    large_init           |w0|                   Zhou et al. 2019, as the two below; w0 are the initial weights
    magnitude_increase   |w| - |w0|
    movement             |w - w0|               not the movement of Sanh et al. 2020, which learns scores
    snip                 |w * E[g]|             Lee et al. 2019, eq. 6; g is the gradient of the loss with respect to w
    taylor               E[(w * g)^2]           Molchanov et al. 2019, eq. 8, the mean over batches
    wanda                |w| * ||x||_2          Sun et al. 2023, eq. 1; x is what the weight is multiplied by, over all samples
    random               uniform

Gradients and inputs are those of the network as it is given, in evaluation mode: SNIP at initialization is this step on the untrained
network, and on a trained one E[g] is near zero, which is why taylor squares before it takes the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from modelpress.spec.prune import PruneMagnitude
from workers.engine import data, forward, losses
from workers.engine.context import Context
from workers.engine.errors import BadModel
from workers.engine.graph import Graph, execute, match, ops
from workers.engine.passes import _weights
from workers.engine.passes.prune import _masks
from workers.engine.passes.prune._masks import Array

_BATCH = 32


def scores(
    graph: Graph, names: Sequence[str], step: PruneMagnitude, ctx: Context
) -> dict[str, Array]:
    """The worth of each weight of `names`, of the weight's own shape.

    Raises:
        BadModel: the initial model has not these weights, or a gradient or an input is not finite.
        BadData, Unsupported: as `losses.classification`.
    """
    weights = {name: _masks.exact(graph.weight(name)) for name in names}
    return _CRITERIA[step.criterion](graph, weights, step, ctx)


Weights = Mapping[str, Array]
_Criterion = Callable[[Graph, Weights, PruneMagnitude, Context], dict[str, Array]]


def _large_final(_: Graph, weights: Weights, __: PruneMagnitude, ___: Context) -> dict[str, Array]:
    return _masks.magnitudes(weights)


def _small_final(_: Graph, weights: Weights, __: PruneMagnitude, ___: Context) -> dict[str, Array]:
    return {name: -np.abs(w) for name, w in weights.items()}


def _large_init(_: Graph, weights: Weights, __: PruneMagnitude, ctx: Context) -> dict[str, Array]:
    return _masks.magnitudes(_initial(weights, ctx))


def _magnitude_increase(
    _: Graph, weights: Weights, __: PruneMagnitude, ctx: Context
) -> dict[str, Array]:
    initial = _initial(weights, ctx)
    return {name: np.abs(w) - np.abs(initial[name]) for name, w in weights.items()}


def _movement(_: Graph, weights: Weights, __: PruneMagnitude, ctx: Context) -> dict[str, Array]:
    initial = _initial(weights, ctx)
    return {name: np.abs(w - initial[name]) for name, w in weights.items()}


def _random(_: Graph, weights: Weights, __: PruneMagnitude, ctx: Context) -> dict[str, Array]:
    rng = ctx.random("criterion")
    return {name: rng.random(w.shape) for name, w in weights.items()}


def _snip(
    graph: Graph, weights: Weights, step: PruneMagnitude, ctx: Context
) -> dict[str, Array]:
    total = {name: np.zeros(w.shape) for name, w in weights.items()}
    for share, gradients in _gradients(graph, step, ctx):
        for name in total:
            total[name] += share * gradients[name]
    return _finite({name: np.abs(w * total[name]) for name, w in weights.items()}, "gradient")


def _taylor(
    graph: Graph, weights: Weights, step: PruneMagnitude, ctx: Context
) -> dict[str, Array]:
    total = {name: np.zeros(w.shape) for name, w in weights.items()}
    for share, gradients in _gradients(graph, step, ctx):
        for name, w in weights.items():
            total[name] += share * np.square(w * gradients[name])
    return _finite(total, "gradient")


def _wanda(
    graph: Graph, weights: Weights, step: PruneMagnitude, ctx: Context
) -> dict[str, Array]:
    squares = _squared_inputs(graph, weights, step, ctx)
    found = {name: np.abs(w) * np.sqrt(squares[name]) for name, w in weights.items()}
    return _finite(found, "input of a layer")


_CRITERIA: dict[str, _Criterion] = {
    "large_final": _large_final,
    "small_final": _small_final,
    "large_init": _large_init,
    "magnitude_increase": _magnitude_increase,
    "movement": _movement,
    "snip": _snip,
    "taylor": _taylor,
    "wanda": _wanda,
    "random": _random,
}


def _initial(weights: Weights, ctx: Context) -> dict[str, Array]:
    """The same weights before training."""
    graph = ctx.models["initial"].clone()
    _weights.turn(graph)
    for name, weight in weights.items():
        found = graph.weight(name).shape if name in graph.initializers else None
        if found != weight.shape:
            seen = f"has it as {list(found)}" if found is not None else "has none of that name"
            raise BadModel(
                f"weight '{name}' is {list(weight.shape)}, but the initial model {seen}",
                layer=name,
                hint="put this step before those that change shapes, or use a criterion that needs no initial weights",
            )
    return {name: _masks.exact(graph.weight(name)) for name in weights}


def _gradients(
    graph: Graph, step: PruneMagnitude, ctx: Context
) -> Iterator[tuple[float, dict[str, npt.NDArray[np.floating]]]]:
    """For each batch its share of the samples and the gradients of its mean loss, zero where the loss does not reach."""
    dataset = _data(ctx)
    module = execute.as_module(graph).to(ctx.device).eval()
    loss = losses.classification(ctx.source)
    fixed = forward.fixed_batch(ctx.source, dataset)
    for share, indices in _batches(dataset, step, ctx):
        module.zero_grad(set_to_none=False)
        loss(forward.run(module, dataset, indices, ctx.device, fixed)).backward()  # type: ignore[no-untyped-call]
        yield (
            share,
            {
                name: np.zeros(w.shape) if w.grad is None else w.grad.double().cpu().numpy()
                for name, w in module.weights.items()
            },
        )


def _squared_inputs(
    graph: Graph, weights: Weights, step: PruneMagnitude, ctx: Context
) -> dict[str, Array]:
    """For each weight the sum of squares of all it is multiplied by.

    A layer is linear in its weight: the gradient of the sum of layer(x^2, w) with respect to w is what is wanted, for any x and w,
    with the strides, pads and groups that the layer has.
    """
    dataset = _data(ctx)
    layers = [layer for layer in match.layers(graph) if layer.weight in weights]
    module = execute.as_module(graph).to(ctx.device).eval()
    inputs = [layer.node.inputs[0].name or "" for layer in layers if layer.node.inputs[0]]
    total = {name: np.zeros(w.shape) for name, w in weights.items()}
    fixed = forward.fixed_batch(ctx.source, dataset)
    for _, indices in _batches(dataset, step, ctx, fixed or _BATCH):
        feeds = dataset.batch(indices)
        given = [torch.from_numpy(feeds[name]).to(ctx.device) for name in dataset.input_names]
        with torch.no_grad():
            values = module.values(given, inputs)
        for layer, name in zip(layers, inputs, strict=True):
            total[layer.weight] += _met(layer, values[name].float(), total[layer.weight].shape)
    return total


def _met(layer: match.Layer, x: torch.Tensor, shape: tuple[int, ...]) -> Array:
    """Sums of squares of the elements of x that each weight of the layer meets."""
    weight = torch.zeros(shape, device=x.device, requires_grad=True)
    attributes = {name: attribute.value for name, attribute in layer.node.attributes.items()}
    operator = ops.TABLE[ops.key("", layer.kind)]
    result: torch.Tensor = operator.compute(x.square(), weight, **attributes)
    (gradient,) = torch.autograd.grad(result.sum(), weight)
    return gradient.double().cpu().numpy()


def _batches(
    dataset: data.Dataset, step: PruneMagnitude, ctx: Context, size: int = _BATCH
) -> Iterator[tuple[float, npt.NDArray[np.int64]]]:
    """A seeded draw of the samples in batches, each with its share of them.

    Batches are of nearly equal size, and all of `size` where the draw is a multiple of it.
    """
    drawn = ctx.random("criterion").permutation(dataset.samples)[: step.samples]
    for indices in np.array_split(drawn, -(-len(drawn) // size)):
        yield len(indices) / len(drawn), indices


def _data(ctx: Context) -> data.Dataset:
    assert ctx.train is not None, "the recipe was checked: this criterion has data"
    return ctx.train


def _finite(found: dict[str, Array], what: str) -> dict[str, Array]:
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise BadModel(
                f"a {what} is not finite, so the weights of '{name}' can't be ranked",
                layer=name,
                hint="train the model anew, or use criterion 'large_final'",
            )
    return found
