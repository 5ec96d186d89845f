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
from dataclasses import dataclass
from typing import TypeAlias

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

Drawn: TypeAlias = npt.NDArray[np.int64]
"""Indices of training samples."""


@dataclass(frozen=True)
class _Given:
    graph: Graph
    weights: Mapping[str, Array]
    step: PruneMagnitude
    ctx: Context


def scores(
    graph: Graph, names: Sequence[str], step: PruneMagnitude, ctx: Context
) -> dict[str, Array]:
    """The worth of each weight of `names`, of the weight's own shape.

    Raises:
        BadModel: the initial model has not these weights, or a gradient or an input is not finite.
        BadData, Unsupported: as `losses.classification`.
    """
    weights = {name: _masks.exact(graph.weight(name)) for name in names}
    return _CRITERIA[step.criterion](_Given(graph, weights, step, ctx))


def _large_final(given: _Given) -> dict[str, Array]:
    return _masks.magnitudes(given.weights)


def _small_final(given: _Given) -> dict[str, Array]:
    return {name: -np.abs(w) for name, w in given.weights.items()}


def _large_init(given: _Given) -> dict[str, Array]:
    return _masks.magnitudes(_initial(given))


def _magnitude_increase(given: _Given) -> dict[str, Array]:
    initial = _initial(given)
    return {name: np.abs(w) - np.abs(initial[name]) for name, w in given.weights.items()}


def _movement(given: _Given) -> dict[str, Array]:
    initial = _initial(given)
    return {name: np.abs(w - initial[name]) for name, w in given.weights.items()}


def _random(given: _Given) -> dict[str, Array]:
    rng = given.ctx.random("criterion")
    return {name: rng.random(w.shape) for name, w in given.weights.items()}


def _snip(given: _Given) -> dict[str, Array]:
    total = _zeros(given)
    for share, gradients in _gradients(given):
        for name in total:
            total[name] += share * gradients[name]
    return _finite({name: np.abs(w * total[name]) for name, w in given.weights.items()}, "gradient")


def _taylor(given: _Given) -> dict[str, Array]:
    total = _zeros(given)
    for share, gradients in _gradients(given):
        for name, w in given.weights.items():
            total[name] += share * np.square(w * gradients[name])
    return _finite(total, "gradient")


def _wanda(given: _Given) -> dict[str, Array]:
    squares = _squared_inputs(given)
    found = {name: np.abs(w) * np.sqrt(squares[name]) for name, w in given.weights.items()}
    return _finite(found, "input of a layer")


_CRITERIA: dict[str, Callable[[_Given], dict[str, Array]]] = {
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


def _initial(given: _Given) -> dict[str, Array]:
    """The same weights before training."""
    graph = given.ctx.models["initial"].clone()
    _weights.turn(graph)
    for name, weight in given.weights.items():
        found = graph.weight(name).shape if name in graph.initializers else None
        if found != weight.shape:
            seen = f"has it as {list(found)}" if found is not None else "has none of that name"
            raise BadModel(
                f"weight '{name}' is {list(weight.shape)}, but the initial model {seen}",
                layer=name,
                hint="put this step before those that change shapes, or use a criterion that needs no initial weights",
            )
    return {name: _masks.exact(graph.weight(name)) for name in given.weights}


def _gradients(given: _Given) -> Iterator[tuple[float, dict[str, Array]]]:
    """For each batch its share of the samples and the gradients of its mean loss, zero where the loss does not reach."""
    ctx, dataset = given.ctx, _data(given)
    module = execute.as_module(given.graph).to(ctx.device).eval()
    loss = losses.classification(ctx.source)
    fixed = forward.fixed_batch(ctx.source, dataset)
    drawn = _drawn(given)
    for indices in np.array_split(drawn, -(-len(drawn) // _BATCH)):
        module.zero_grad(set_to_none=True)
        loss(forward.run(module, dataset, indices, ctx.device, fixed)).backward()  # type: ignore[no-untyped-call]
        yield len(indices) / len(drawn), {n: _gradient(w) for n, w in module.weights.items()}


def _gradient(weight: torch.nn.Parameter) -> Array:
    if weight.grad is None:
        return np.zeros(weight.shape)
    found: Array = weight.grad.double().cpu().numpy()
    return found


def _squared_inputs(given: _Given) -> dict[str, Array]:
    """For each weight the sum of squares of all it is multiplied by."""
    ctx, dataset, total = given.ctx, _data(given), _zeros(given)
    layers = [layer for layer in match.layers(given.graph) if layer.weight in total]
    names = [_input(layer) for layer in layers]
    module = execute.as_module(given.graph).to(ctx.device).eval()
    for indices in _pieces(_drawn(given), forward.fixed_batch(ctx.source, dataset)):
        feeds = dataset.batch(indices)
        inputs = [torch.from_numpy(feeds[name]).to(ctx.device) for name in dataset.input_names]
        with torch.no_grad():
            values = module.values(inputs, names)
        for layer, name in zip(layers, names, strict=True):
            total[layer.weight] += _met(layer, values[name].float(), total[layer.weight].shape)
    return total


def _input(layer: match.Layer) -> str:
    value = layer.node.inputs[0]
    assert value is not None, "a layer multiplies something"
    return value.name or ""


def _met(layer: match.Layer, x: torch.Tensor, shape: tuple[int, ...]) -> Array:
    """Sums of squares of the elements of x that each weight of the layer meets.

    A layer is linear in its weight: the gradient of the sum of layer(x^2, w) with respect to w is what is wanted, for any w, with
    the strides, pads and groups that the layer has. No patch is unfolded.
    """
    weight = torch.zeros(shape, device=x.device, requires_grad=True)
    attributes = {name: attribute.value for name, attribute in layer.node.attributes.items()}
    operator = ops.TABLE[ops.key("", layer.kind)]
    result: torch.Tensor = operator.compute(x.square(), weight, **attributes)
    (gradient,) = torch.autograd.grad(result.sum(), weight)
    found: Array = gradient.double().cpu().numpy()
    return found


def _pieces(drawn: Drawn, fixed: int | None) -> list[Drawn]:
    """Batches of nearly equal size; where the model fixes it, as many whole ones as there are samples for, but at least one."""
    if fixed is None:
        return list(np.array_split(drawn, -(-len(drawn) // _BATCH)))
    whole = max(1, len(drawn) // fixed)
    return list(np.resize(drawn, (whole, fixed)))


def _drawn(given: _Given) -> Drawn:
    """A seeded choice of training samples."""
    order = given.ctx.random("criterion").permutation(_data(given).samples)
    return order[: given.step.samples]


def _data(given: _Given) -> data.Dataset:
    assert given.ctx.train is not None, "the recipe was checked: this criterion has data"
    return given.ctx.train


def _zeros(given: _Given) -> dict[str, Array]:
    return {name: np.zeros(w.shape) for name, w in given.weights.items()}


def _finite(found: dict[str, Array], what: str) -> dict[str, Array]:
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise BadModel(
                f"a {what} is not finite, so the weights of '{name}' can't be ranked",
                layer=name,
                hint="train the model anew, or use criterion 'large_final'",
            )
    return found
