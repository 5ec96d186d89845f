"""What a recipe may ask of rewriting steps."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from modelpress.spec.rewrite import RewriteClean, RewriteDepthwise, RewriteLowRank, Target


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {},
            "exactly one of ratio, energy and target says what ranks are, or overrides alone do; none is given",
        ),
        ({"ratio": 2, "energy": 0.9}, "ratio and energy is given"),
        ({"ratio": 1}, "greater than 1"),
        ({"energy": 0.9, "convolution": "cp"}, "singular values, which 'cp' has none of"),
        ({"target": {}}, "exactly one of macs and bytes is the target; neither is given"),
        ({"target": {"macs": 0.5, "bytes": 0.5}}, "both is given"),
        ({"target": {"macs": 1}}, "less than 1"),
        ({"ratio": 2, "recover": {"distill": {}}}, "fine_tune is null"),
        ({"ratio": 2, "samples": 64}, "samples is 64, but nothing is measured on them"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(options: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        RewriteLowRank(**options)


def test_cleaning_leaves_nothing_alone_by_name() -> None:
    with pytest.raises(ValidationError, match=r"exclude is \['conv'\].*leave exclude out"):
        RewriteClean(exclude=("conv",))


@pytest.mark.parametrize(
    ("options", "data", "labels"),
    [
        ({"ratio": 2}, False, False),
        ({"ratio": 2, "activation_aware": True, "samples": 64}, True, False),
        ({"target": {"macs": 0.5}}, True, False),
        ({"ratio": 2, "layerwise": {}}, True, False),
        ({"ratio": 2, "fine_tune": {}}, True, True),
        ({"ratio": 2, "fine_tune": {}, "recover": {"distill": {}}}, True, False),
    ],
)
def test_only_what_measures_or_trains_needs_data(options: Any, data: bool, labels: bool) -> None:
    step = RewriteLowRank(**options)
    assert (step.needs_data, step.needs_labels) == (data, labels)


def test_other_teachers_are_needed_models() -> None:
    taught = {"distill": {"teachers": [{"role": "wise"}]}}
    assert RewriteDepthwise(fine_tune={}, recover=taught).needs_models == ("wise",)


def test_target_is_a_fraction_of_the_one_that_is_given() -> None:
    assert Target(bytes=0.25).fraction == 0.25
