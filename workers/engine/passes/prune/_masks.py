"""Which weights go: exact counts, ties broken by a seeded draw, and masks that only grow from round to round.

A mask is True where a weight is pruned. Masks are kept apart from the weights: a kept weight that training moves through exactly
zero is not lost, and a pruned one can't come back. What a weight is worth is a score beside it: any finite number, higher is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Mask: TypeAlias = npt.NDArray[np.bool_]
Array: TypeAlias = npt.NDArray[np.floating]


def sparsity_in_round(
    final: float,
    index: int,
    rounds: int,
    schedule: Literal["cubic", "iterative", "one_shot"] = "cubic",
) -> float:
    """Sparsity after round `index` of 1..rounds.

    cubic: s(1 - (1 - t)^3) at time t (Zhu, Gupta 2017, eq. 1, from zero). iterative: each round takes the same fraction p of what
    is left, 1 - (1 - p)^index. one_shot: all at once.
    """
    if index >= rounds or schedule == "one_shot":
        return final
    if schedule == "iterative":
        return float(1.0 - (1.0 - final) ** (index / rounds))
    return float(final * (1.0 - (1.0 - index / rounds) ** 3))


def none_pruned(weights: Mapping[str, Array]) -> dict[str, Mask]:
    """Masks that keep everything."""
    return {name: np.zeros(w.shape, dtype=np.bool_) for name, w in weights.items()}


def magnitudes(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Scores that keep the largest weights."""
    return {name: np.abs(exact(w)) for name, w in weights.items()}


def exact(weight: Array) -> Array:
    """A weight in a type in which arithmetic on float16 and bfloat16 loses nothing that matters."""
    return weight.astype(np.float64 if weight.dtype.itemsize > 4 else np.float32)


def in_layer(scores: Array, pruned: Mask, sparsity: float, rng: np.random.Generator) -> Mask:
    """Prunes the round(sparsity * n) lowest of a layer, those of `pruned` first."""
    values = _flat(scores, pruned)
    return lowest(values, round(sparsity * values.size), rng).reshape(scores.shape)


def in_rows(
    scores: Array, pruned: Mask, sparsity: float, rng: np.random.Generator, *, axis: int
) -> Mask:
    """Prunes the round(sparsity * row) lowest weights of each output, which `axis` counts, those of `pruned` first."""
    rows = np.moveaxis(np.where(pruned, -np.inf, scores), axis, 0)
    flat = rows.reshape(len(rows), -1)
    mask = lowest_in_each(flat, round(sparsity * flat.shape[1]), rng)
    return np.moveaxis(mask.reshape(rows.shape), 0, axis)


def in_groups(
    scores: Array, pruned: Mask, count: int, rng: np.random.Generator, *, axis: int, size: int
) -> Mask:
    """Prunes exactly `count` of each `size` consecutive weights along `axis`, those of `pruned` first: N:M with N = size - count.

    The length of the axis is a multiple of `size`.
    """
    lines = np.moveaxis(np.where(pruned, -np.inf, scores), axis, -1)
    mask = lowest_in_each(lines.reshape(-1, size), count, rng)
    return np.moveaxis(mask.reshape(lines.shape), -1, axis)


def over_all(
    scores: Mapping[str, Array],
    pruned: Mapping[str, Mask],
    sparsity: float,
    rng: np.random.Generator,
    *,
    cap: float,
) -> dict[str, Mask]:
    """Prunes the round(sparsity * n) lowest of all layers together, those of `pruned` first.

    No layer loses more than floor(cap * its weights). Where the rounding of these caps leaves no room for the whole count, a few
    weights less are pruned.
    """
    flat = {name: _flat(s, pruned[name]) for name, s in scores.items()}
    for values in flat.values():
        values[~lowest(values, int(cap * values.size), rng)] = np.inf
    joined = np.concatenate(list(flat.values()))
    count = min(round(sparsity * joined.size), int((joined < np.inf).sum()))
    chosen = lowest(joined, count, rng)
    ends = np.cumsum([values.size for values in flat.values()])[:-1]
    parts = np.split(chosen, ends)
    return {
        name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)
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


def lowest_in_each(scores: npt.NDArray[np.floating], count: int, rng: np.random.Generator) -> Mask:
    """Marks exactly `count` of the lowest scores of each row; among equals a seeded draw decides. scores: [rows, n]."""
    order = np.lexsort((rng.random(scores.shape), scores), axis=-1)
    mask: Mask = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(mask, order[:, :count], True, axis=-1)
    return mask


def _flat(scores: Array, pruned: Mask) -> npt.NDArray[np.floating]:
    """Scores as [n], below every other where the weight is pruned already, so that masks only grow."""
    values: Array = np.where(pruned, -np.inf, scores).reshape(-1)
    return values
