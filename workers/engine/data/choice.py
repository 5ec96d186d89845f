"""Seeded choice of samples, with the shares of the labels kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.engine.errors import BadData


def held_out(samples: int, fraction: float) -> int:
    """How many of `samples` are held out: at least one, and at least one is left.

    Raises:
        BadData: fewer than two samples.
    """
    if samples < 2:
        raise BadData(
            f"the dataset has {samples} sample, which can't be split into train and eval",
            hint="add samples, or give an eval dataset of its own as data.eval",
        )
    return min(max(1, round(fraction * samples)), samples - 1)


def choose(samples: int, n: int, labels: NDArray[np.int64] | None, seed: int) -> NDArray[np.int64]:
    """`n` of the indices 0..samples-1, sorted. With labels, each class gives its share, the largest remainders rounded up."""
    generator = np.random.default_rng([seed, samples, n])
    if labels is None:
        return np.sort(generator.permutation(samples)[:n])
    classes, members = np.unique(labels, return_inverse=True)
    shuffled = generator.permutation(samples)
    by_class = shuffled[np.argsort(members[shuffled], kind="stable")]
    counts = np.bincount(members, minlength=len(classes))
    starts = np.cumsum(counts) - counts
    picked = [
        by_class[start : start + quota]
        for start, quota in zip(starts, _quotas(counts, n, generator), strict=True)
    ]
    return np.sort(np.concatenate(picked))


def _quotas(counts: NDArray[np.int64], n: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Largest-remainder apportionment of `n` to classes of these sizes; ties by the generator."""
    exact = counts * (n / counts.sum())
    quotas = np.floor(exact).astype(np.int64)
    ties = generator.permutation(len(counts))
    order = ties[np.argsort(-(exact - quotas)[ties], kind="stable")]
    quotas[order[: n - int(quotas.sum())]] += 1
    return np.asarray(quotas)
