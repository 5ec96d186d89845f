from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.data import zips
from workers.engine import data
from workers.engine.data import choice, dataset
from workers.engine.errors import BadData


def numbers(samples: int, labels: np.ndarray | None = None) -> data.Dataset:
    """Sample i holds the number i."""
    array = np.arange(samples, dtype=np.float32)[:, None]
    column = dataset.ArrayColumn(array, array.dtype)
    return replace(dataset.with_columns([("x", column)], samples), labels=labels)


def held(d: data.Dataset) -> list[int]:
    return [int(i) for i in d.batch(np.arange(d.samples))["x"][:, 0]]


def test_a_subset_of_a_subset_names_the_right_samples() -> None:
    whole = numbers(10, np.arange(10))
    part = whole.subset([9, 7, 5, 3]).subset([2, 0])
    assert held(part) == [5, 9]
    assert part.labels is not None
    assert part.labels.tolist() == [5, 9]


def test_batches_cover_every_sample_once_in_order() -> None:
    seen = [batch["x"][:, 0].tolist() for _, batch in numbers(7).batches(3)]
    assert seen == [[0, 1, 2], [3, 4, 5], [6]]


def test_the_same_seed_takes_the_same_samples_and_another_does_not() -> None:
    whole = numbers(1000)
    assert held(whole.take(50, 1)) == held(whole.take(50, 1))
    assert held(whole.take(50, 1)) != held(whole.take(50, 2))


def test_more_than_there_is_takes_all() -> None:
    assert held(numbers(3).take(10, 0)) == [0, 1, 2]


def test_a_split_is_disjoint_complete_and_keeps_the_shares() -> None:
    labels = np.repeat([0, 1, 2], [500, 300, 200])
    train, held_out, how = data.split(numbers(1000, labels), 0.2, 3)
    assert sorted(held(train) + held(held_out)) == list(range(1000))
    assert held_out.labels is not None
    assert np.bincount(held_out.labels).tolist() == [100, 60, 40]
    assert how == ("200 of 1,000 samples (20%) held out for measuring, stratified by label, seed 3")


def test_a_split_without_labels_is_random() -> None:
    train, held_out, how = data.split(numbers(10), 0.3, 0)
    assert (train.samples, held_out.samples) == (7, 3)
    assert "at random" in how


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_a_split_leaves_something_on_both_sides(fraction: float) -> None:
    train, held_out, _ = data.split(numbers(3, np.array([0, 1, 2])), fraction, 0)
    assert min(train.samples, held_out.samples) == 1


def test_one_sample_is_not_split() -> None:
    with pytest.raises(BadData, match="1 sample, which can't be split"):
        data.split(numbers(1), 0.2, 0)


@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=200),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_choice_is_exact_and_fair(labels: list[int], share: float, seed: int) -> None:
    wanted = np.array(labels, np.int64)
    n = round(share * len(labels))
    chosen = choice.choose(len(labels), n, wanted, seed)
    assert len(chosen) == len(set(chosen.tolist())) == n
    counts, got = np.bincount(wanted), np.bincount(wanted[chosen], minlength=wanted.max() + 1)
    assert np.all(np.abs(got - counts * n / len(labels)) < 1)


def test_folders_that_differ_between_train_and_eval_are_refused() -> None:
    two = replace(numbers(4), classes=("cat", "dog"))
    three = replace(numbers(4), classes=("bird", "cat", "dog"))
    data.check_same_classes(two, numbers(4))
    with pytest.raises(BadData, match=r"they differ in \['bird'\]"):
        data.check_same_classes(three, two)


def test_an_unlabelled_file_opens_and_splits(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((10, 1, 8, 8), np.float32))
    opened = data.open(tmp_path / "a.npz", [zips.IMAGE_INPUT], zips.PLAIN, tmp_path)
    train, held_out, _ = data.split(opened, 0.2, 0)
    assert (train.labels, held_out.labels) == (None, None)
