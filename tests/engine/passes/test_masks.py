from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.passes.prune import _masks as masks


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.905, 1.0])
@pytest.mark.parametrize(
    "values", ["normal", "all_equal", "few_values", "zeros"], ids=lambda v: str(v)
)
def test_exactly_the_rounded_count_is_pruned_for_any_ties_and_dtype(dtype, sparsity, values):
    w = {
        "normal": rng().normal(size=(7, 13)),
        "all_equal": np.full((7, 13), 0.25),
        "few_values": rng().integers(-2, 3, (7, 13)),
        "zeros": np.zeros((7, 13)),
    }[values].astype(dtype)
    mask = masks.by_layer({"w": w}, masks.none_pruned({"w": w}), sparsity, rng())["w"]
    assert mask.shape == w.shape
    assert mask.sum() == round(sparsity * w.size)


def test_no_kept_weight_is_smaller_than_a_pruned_one():
    w = {"w": rng().normal(size=(40, 30)).astype(np.float32)}
    mask = masks.by_layer(w, masks.none_pruned(w), 0.7, rng())["w"]
    assert np.abs(w["w"][mask]).max() <= np.abs(w["w"][~mask]).min()


def test_ties_are_broken_by_the_seed():
    w = {"w": np.ones((100,), np.float32)}
    nothing = masks.none_pruned(w)
    first, again, other = (masks.by_layer(w, nothing, 0.5, rng(s))["w"] for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    st.floats(0.05, 0.95),
    st.integers(1, 6),
    st.integers(0, 1000),
)
def test_masks_grow_from_round_to_round_and_respect_the_cap(sizes, sparsity, rounds, seed):
    draw = rng(seed)
    weights = {f"w{i}": draw.normal(size=n).astype(np.float32) for i, n in enumerate(sizes)}
    cap = max(sparsity, 0.9)
    pruned = masks.none_pruned(weights)
    for index in range(1, rounds + 1):
        target = masks.sparsity_in_round(sparsity, index, rounds)
        grown = masks.overall(weights, pruned, target, draw, cap=cap)
        assert all((grown[name] >= pruned[name]).all() for name in weights)
        assert all(grown[name].sum() <= int(cap * w.size) for name, w in weights.items())
        room = sum(int(cap * n) for n in sizes)
        assert sum(int(m.sum()) for m in grown.values()) == min(round(target * sum(sizes)), room)
        pruned = grown
        weights = {name: draw.normal(size=w.shape) for name, w in weights.items()}


def test_a_layer_of_small_weights_does_not_collapse():
    weights = {"small": rng().normal(size=1000) * 1e-6, "large": rng().normal(size=1000)}
    pruned = masks.overall(weights, masks.none_pruned(weights), 0.6, rng(), cap=0.9)
    assert pruned["small"].sum() == 900
    assert pruned["large"].sum() == 300


def test_schedule_prunes_fast_first_and_ends_at_the_target():
    steps = [masks.sparsity_in_round(0.8, i, 4) for i in range(1, 5)]
    assert steps[-1] == 0.8
    assert steps[0] == pytest.approx(0.8 * (1 - 0.75**3))
    gains = np.diff([0.0, *steps])
    assert (np.diff(gains) < 0).all()
