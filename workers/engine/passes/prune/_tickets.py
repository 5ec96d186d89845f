"""Tickets and what they are compared with: where each network of a round begins.

    start = the initial weights, or those the network is rewound to;  m = the ticket's mask, p a random order of a layer

    ticket                start                                    under m
    random_reinit         p(start)                                 under m            as in the code of Zhou et al. 2019
    signed_permutation    sign(start) * p(|start|)                 under m            Zhou et al. 2019, section 4.2
    signed_constant       sign(start) * std(start)                 under m            the same
    random_mask           start                                    under p(m)         as many weights of each layer

Only weights of layers that are pruned are drawn anew. Everything else (biases, normalization, layers the recipe excludes) is what it is
in `start`. A mask is True where a weight is pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from workers.engine.graph import Graph
from workers.engine.passes.prune import _masks
from workers.engine.passes.prune._masks import Array, Mask

TICKET = "ticket"

_Redraw = Callable[[Array, np.random.Generator], Array]


def begin(
    variant: str, start: Graph, masks: Mapping[str, Mask], rng: np.random.Generator
) -> tuple[Graph, dict[str, Mask]]:
    """The weights that a network begins with, zero where pruned, and its masks. What survives in a ticket is that of `start`, bit for bit."""
    mine = (
        {name: shuffled(m, rng) for name, m in masks.items()} if variant == "random_mask" else masks
    )
    redraw = _REDRAWN.get(variant)
    result = start.clone()
    for name, mask in mine.items():
        weight = start.weight(name)
        drawn = weight if redraw is None else redraw(weight, rng).astype(weight.dtype)
        result.set_weight(name, np.where(mask, np.zeros((), weight.dtype), drawn))
    return result, dict(mine)


def shuffled(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same elements in random order, over all axes."""
    return rng.permutation(array.reshape(-1)).reshape(array.shape)


def signed_permutation(weight: Array, rng: np.random.Generator) -> Array:
    """The magnitudes in random order, each with the sign that its place has. Zeros have none and stay."""
    result: Array = np.sign(weight) * shuffled(np.abs(weight), rng)
    return result


def signed_constant(weight: Array, rng: np.random.Generator) -> Array:
    """One magnitude for all, the standard deviation of the layer."""
    result: Array = np.sign(weight) * _masks.exact(weight).std()
    return result


_REDRAWN: dict[str, _Redraw] = {
    "random_reinit": shuffled,
    "signed_permutation": signed_permutation,
    "signed_constant": signed_constant,
}
