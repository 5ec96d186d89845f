"""One choice for each layer: the least harm within a budget."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Table = Mapping[str, Mapping[int, float]]
"""By layer and by choice."""

BUCKETS = 1 << 12
_NEGLIGIBLE = 1e-9
"""Share of a budget that may be left over where the cheapest choices use all of it."""


def least_harm(harm: Table, cost: Table, budget: float) -> dict[str, int] | None:
    """The choices of least total harm whose total cost keeps the budget; null where none keeps it.

    Dynamic programming over what the budget leaves beyond the cheapest choices, in 4,096 steps; costs are rounded up to a step, so that the
    budget holds and the harm is that of a budget smaller by at most one step for each layer.
    """
    cheapest = {layer: min(of.values()) for layer, of in cost.items()}
    room = budget - sum(cheapest.values())
    if room < 0:
        return None
    step = max(room, _NEGLIGIBLE * budget) / BUCKETS
    best = np.zeros(BUCKETS + 1)
    chosen: dict[str, np.ndarray] = {}
    for layer, choices in harm.items():
        extra = {c: int(np.ceil((cost[layer][c] - cheapest[layer]) / step - 1e-9)) for c in choices}
        best, chosen[layer] = _with(best, choices, extra)
    return _read(chosen, harm, cost, cheapest, step)


def _with(
    best: np.ndarray, choices: Mapping[int, float], extra: Mapping[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The least harm for each budget with one layer more, and what was chosen for it."""
    order = sorted(choices, key=lambda c: (extra[c], choices[c]))
    found = np.full(len(best), np.inf)
    picked = np.zeros(len(best), np.int64)
    for c in order:
        if extra[c] > BUCKETS:
            continue
        harm = np.full(len(best), np.inf)
        harm[extra[c] :] = best[: len(best) - extra[c]] + choices[c]
        better = harm < found
        found[better], picked[better] = harm[better], c
    return found, picked


def _read(
    chosen: Mapping[str, np.ndarray],
    harm: Table,
    cost: Table,
    cheapest: Mapping[str, float],
    step: float,
) -> dict[str, int]:
    """Follows the choices back from the whole budget."""
    left, result = BUCKETS, {}
    for layer in reversed(list(harm)):
        result[layer] = int(chosen[layer][left])
        extra = cost[layer][result[layer]] - cheapest[layer]
        left -= int(np.ceil(extra / step - 1e-9))
    return {layer: result[layer] for layer in harm}
