"""Which weights go: exact counts, ties broken by a seeded draw, and masks that only grow from round to round.

A mask is True where a weight is pruned. Masks are kept apart from the weights: a kept weight that training moves through exactly
zero is not lost, and a pruned one can't come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Mask: TypeAlias = npt.NDArray[np.bool_]
Array: TypeAlias = npt.NDArray[np.floating]


def sparsity_in_round(final: float, index: int, rounds: int) -> float:
    """The cubic schedule: sparsity after round `index` of 1..rounds (Zhu, Gupta 2017, eq. 1, from zero)."""
    return float(final * (1.0 - (1.0 - index / rounds) ** 3))


def none_pruned(weights: Mapping[str, Array]) -> dict[str, Mask]:
    """Masks that keep everything."""
    return {name: np.zeros(w.shape, dtype=np.bool_) for name, w in weights.items()}


def by_layer(
    weights: Mapping[str, Array],
    pruned: Mapping[str, Mask],
    sparsity: float,
    rng: np.random.Generator,
) -> dict[str, Mask]:
    """Prunes round(sparsity * n) weights of smallest magnitude in each layer, those of `pruned` first."""
    masks = {}
    for name, weight in weights.items():
        scores = _scores(weight, pruned[name])
        masks[name] = lowest(scores, round(sparsity * scores.size), rng).reshape(weight.shape)
    return masks


def overall(
    weights: Mapping[str, Array],
    pruned: Mapping[str, Mask],
    sparsity: float,
    rng: np.random.Generator,
    *,
    cap: float,
) -> dict[str, Mask]:
    """Prunes round(sparsity * n) weights of smallest magnitude of all layers together, those of `pruned` first.

    No layer loses more than floor(cap * its weights). Where the rounding of these caps leaves no room for the whole count, a few
    weights less are pruned.
    """
    scores = {name: _scores(w, pruned[name]) for name, w in weights.items()}
    for values in scores.values():
        values[~lowest(values, int(cap * values.size), rng)] = np.inf
    joined = np.concatenate(list(scores.values()))
    count = min(round(sparsity * joined.size), int(np.isfinite(joined).sum()))
    chosen = lowest(joined, count, rng)
    ends = np.cumsum([values.size for values in scores.values()])[:-1]
    parts = np.split(chosen, ends)
    return {
        name: part.reshape(weights[name].shape) for name, part in zip(scores, parts, strict=True)
    }


def lowest(scores: npt.NDArray[np.floating], count: int, rng: np.random.Generator) -> Mask:
    """Marks exactly `count` of the lowest scores; among equals at the border a seeded draw decides. scores: [n]."""
    if count <= 0:
        return np.zeros(scores.size, dtype=np.bool_)
    if count >= scores.size:
        return np.ones(scores.size, dtype=np.bool_)
    border = np.partition(scores, count - 1)[count - 1]
    mask: Mask = scores < border
    ties = np.flatnonzero(scores == border)
    missing = count - int(mask.sum())
    mask[rng.choice(ties, size=missing, replace=False)] = True
    return mask


def _scores(weight: Array, pruned: Mask) -> npt.NDArray[np.floating]:
    """Magnitudes as [n], -1 where the weight is pruned already: below every magnitude, so that masks only grow."""
    exact = np.float64 if weight.dtype.itemsize > 4 else np.float32
    scores: Array = np.abs(weight.astype(exact)).reshape(-1)
    scores[pruned.reshape(-1)] = -1.0
    return scores
