"""What a recipe may ask of prune.supermask."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from modelpress.spec.prune import PruneSupermask
from modelpress.spec.step import FineTune


def test_it_needs_labels() -> None:
    step = PruneSupermask()
    assert (step.needs_data, step.needs_labels, step.needs_models) == (True, True, ())


def test_scores_are_trained_at_rates_that_weights_would_not_stand() -> None:
    assert PruneSupermask.model_validate({"training": {"learning_rate": 100}})
    with pytest.raises(ValidationError):
        FineTune(learning_rate=100)


def test_training_takes_what_fine_tuning_takes() -> None:
    assert set(type(PruneSupermask().training).model_fields) == set(FineTune.model_fields)
