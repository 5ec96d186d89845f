from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.passes.prune import _masks as masks


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def by_layer(weights, sparsity, draw):
    scores, pruned = masks.magnitudes(weights), masks.none_pruned(weights)
    return {name: masks.in_layer(scores[name], pruned[name], sparsity, draw) for name in weights}


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
    mask = by_layer({"w": w}, sparsity, rng())["w"]
    assert mask.shape == w.shape
    assert mask.sum() == round(sparsity * w.size)


def test_no_kept_weight_is_smaller_than_a_pruned_one():
    w = {"w": rng().normal(size=(40, 30)).astype(np.float32)}
    mask = by_layer(w, 0.7, rng())["w"]
    assert np.abs(w["w"][mask]).max() <= np.abs(w["w"][~mask]).min()


def test_ties_are_broken_by_the_seed():
    w = {"w": np.ones((100,), np.float32)}
    first, again, other = (by_layer(w, 0.5, rng(s))["w"] for s in (1, 1, 2))
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
        grown = masks.over_all(masks.magnitudes(weights), pruned, target, draw, cap=cap)
        assert all((grown[name] >= pruned[name]).all() for name in weights)
        assert all(grown[name].sum() <= int(cap * w.size) for name, w in weights.items())
        room = sum(int(cap * n) for n in sizes)
        assert sum(int(m.sum()) for m in grown.values()) == min(round(target * sum(sizes)), room)
        pruned = grown
        weights = {name: draw.normal(size=w.shape) for name, w in weights.items()}


def test_a_layer_of_small_weights_does_not_collapse():
    weights = {"small": rng().normal(size=1000) * 1e-6, "large": rng().normal(size=1000)}
    pruned = masks.over_all(
        masks.magnitudes(weights), masks.none_pruned(weights), 0.6, rng(), cap=0.9
    )
    assert pruned["small"].sum() == 900
    assert pruned["large"].sum() == 300


@pytest.mark.parametrize("values", ["normal", "all_equal"])
def test_exactly_the_rounded_count_goes_in_every_row(values):
    scores = rng().normal(size=(7, 13, 3)) if values == "normal" else np.ones((7, 13, 3))
    for axis, length in ((0, 39), (1, 21), (2, 91)):
        nothing = np.zeros(scores.shape, bool)
        mask = masks.in_rows(scores, nothing, 0.3, rng(), axis=axis)
        others = tuple(a for a in range(3) if a != axis)
        assert (mask.sum(axis=others) == round(0.3 * length)).all()


def test_rows_are_ranked_each_for_itself():
    scores = np.array([[1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0]])
    nothing = np.zeros(scores.shape, bool)
    rows = masks.in_rows(scores, nothing, 0.5, rng(), axis=0)
    assert rows.tolist() == [[True, True, False, False], [False, False, True, True]]
    columns = masks.in_rows(scores, nothing, 0.5, rng(), axis=1)
    assert columns.tolist() == [[True] * 4, [False] * 4]


@pytest.mark.parametrize("values", ["normal", "all_equal"])
@pytest.mark.parametrize("axis", [0, 1])
def test_exactly_n_of_each_m_are_kept(values, axis):
    scores = rng().normal(size=(8, 12, 3)) if values == "normal" else np.ones((8, 12, 3))
    nothing = np.zeros(scores.shape, bool)
    mask = masks.in_groups(scores, nothing, 2, rng(), axis=axis, size=4)
    groups = np.moveaxis(mask, axis, -1).reshape(-1, 4)
    assert (groups.sum(axis=1) == 2).all()


def test_ties_within_groups_are_broken_by_the_seed():
    scores, nothing = np.ones((1, 400)), np.zeros((1, 400), bool)
    first, again, other = (
        masks.in_groups(scores, nothing, 2, rng(s), axis=1, size=4) for s in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_groups_are_consecutive_along_the_axis():
    scores = np.array([[1.0, 9.0], [8.0, 2.0], [7.0, 3.0], [6.0, 4.0]])
    nothing = np.zeros(scores.shape, bool)
    mask = masks.in_groups(scores, nothing, 1, rng(), axis=0, size=2)
    assert mask.T.tolist() == [[True, False, False, True], [False, True, True, False]]


def test_rows_and_groups_grow_from_round_to_round():
    nothing = np.zeros((6, 8), bool)
    few = masks.in_rows(rng(1).normal(size=(6, 8)), nothing, 0.25, rng(), axis=0)
    assert (masks.in_rows(rng(2).normal(size=(6, 8)), few, 0.5, rng(), axis=0) >= few).all()
    one = masks.in_groups(rng(1).normal(size=(6, 8)), nothing, 1, rng(), axis=1, size=4)
    two = masks.in_groups(rng(2).normal(size=(6, 8)), one, 2, rng(), axis=1, size=4)
    assert (two >= one).all()


def test_scores_may_be_negative_and_pruned_weights_still_go_first():
    scores = np.array([-5.0, -1.0, 3.0, 9.0])
    pruned = np.array([False, False, False, True])
    assert masks.in_layer(scores, pruned, 0.5, rng()).tolist() == [True, False, False, True]
    both = masks.over_all({"a": scores}, {"a": pruned}, 0.5, rng(), cap=0.9)["a"]
    assert both.tolist() == [True, False, False, True]


def test_each_iterative_round_takes_the_same_fraction_of_what_is_left():
    kept = [1 - masks.sparsity_in_round(0.9, i, 5, "iterative") for i in range(6)]
    ratios = np.array(kept[1:]) / kept[:-1]
    assert ratios == pytest.approx([0.1 ** (1 / 5)] * 5)
    assert kept[-1] == pytest.approx(0.1)


def test_one_shot_is_there_at_once():
    assert masks.sparsity_in_round(0.9, 1, 3, "one_shot") == 0.9


def test_schedule_prunes_fast_first_and_ends_at_the_target():
    steps = [masks.sparsity_in_round(0.8, i, 4) for i in range(1, 5)]
    assert steps[-1] == 0.8
    assert steps[0] == pytest.approx(0.8 * (1 - 0.75**3))
    gains = np.diff([0.0, *steps])
    assert (np.diff(gains) < 0).all()
