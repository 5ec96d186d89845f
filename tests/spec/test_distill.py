"""Steps that distil: which options contradict each other, and what they need."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from modelpress.spec.distill import Augment, Distill, DistillFeatures, DistillLogits, Student


def test_labels_are_optional() -> None:
    assert DistillLogits().needs_data
    assert not DistillLogits().needs_labels
    assert not DistillLogits(alpha=1).needs_labels
    assert DistillLogits(alpha=0.5).needs_labels


def test_teachers_and_students_are_models_the_job_must_have() -> None:
    asked = DistillLogits(teachers=[{"role": "source"}, {"role": "large"}], student={"role": "own"})
    assert asked.needs_models == ("own", "large")
    assert DistillLogits().needs_models == ()
    both = DistillLogits(teachers=[{"role": "a"}], student={"role": "a"})
    assert both.needs_models == ("a",)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Student(), "is the model as it is: leave student out"),
        (
            lambda: Student(role="a", width=0.5),
            "role and width or depth are given: leave out all but one",
        ),
        (lambda: Augment(), "augment varies nothing"),
        (
            lambda: Distill(teachers=[{"role": "a"}, {"role": "a"}]),
            "teacher 'a' is named 2 times: name it once, with a larger weight",
        ),
        (
            lambda: DistillFeatures(teachers=[{"role": "a"}, {"role": "b"}]),
            "2 teachers are named, but places are paired with those of one",
        ),
        (
            lambda: Distill(others_weight=4),
            "others_weight is of variant 'dkd', but variant is 'kd': leave others_weight out",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(make, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        make()


def test_weights_of_features_are_those_of_the_method() -> None:
    assert DistillFeatures(method="relational").share == 25
    assert DistillFeatures(method="relational", weight=3).share == 3
