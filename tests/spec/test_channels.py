"""What a step that removes channels may ask for."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from modelpress.spec.prune import PruneChannels, SparseTraining

TARGETS = ("fraction", "macs_ratio", "parameters_ratio", "latency_ratio")


@pytest.mark.parametrize("target", TARGETS)
def test_any_one_target_will_do(target: str) -> None:
    value = 0.5 if target == "fraction" else 2.0
    assert PruneChannels(**{target: value}).target == (target, value)


@pytest.mark.parametrize(
    ("fields", "seen"),
    [({}, "none is given"), ({"fraction": 0.5, "latency_ratio": 2}, "fraction and latency_ratio")],
)
def test_no_target_and_two_are_refused(fields: dict[str, Any], seen: str) -> None:
    with pytest.raises(ValidationError, match=seen):
        PruneChannels(**fields)


@pytest.mark.parametrize(
    ("fields", "multiple"),
    [
        ({"macs_ratio": 2}, 8),
        ({"latency_ratio": 2}, 8),
        ({"parameters_ratio": 2}, 1),
        ({"fraction": 0.5}, 1),
        ({"macs_ratio": 2, "round_to": 3}, 3),
    ],
)
def test_blocks_of_the_runtime_are_kept_where_speed_is_the_target(
    fields: dict[str, Any], multiple: int
) -> None:
    assert PruneChannels(**fields).multiple == multiple


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({}, (False, False)),
        ({"criterion": "activation"}, (True, False)),
        ({"criterion": "taylor"}, (True, True)),
        ({"criterion": "bn_scale", "sparse_training": SparseTraining()}, (True, True)),
    ],
)
def test_data_and_labels_are_asked_for_where_they_are_read(
    fields: dict[str, Any], needs: tuple[bool, bool]
) -> None:
    step = PruneChannels(fraction=0.5, **fields)
    assert (step.needs_data, step.needs_labels) == needs


def test_sparse_training_that_no_criterion_looks_at_is_refused() -> None:
    with pytest.raises(ValidationError, match="criterion 'l2' does not look at"):
        PruneChannels(fraction=0.5, sparse_training=SparseTraining())
