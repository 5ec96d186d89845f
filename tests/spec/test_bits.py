"""What a recipe may ask of quantize.bits."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from modelpress.spec.quantize import QuantizeBits


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"bits": 1}, "greater than or equal to 2"),
        ({"bits": 9}, "less than or equal to 8"),
        ({"act_order": True}, "option of method 'gptq'"),
        ({"sequential": True}, "method is 'rtn'"),
        ({"activations": "int8"}, "needs unpack 'run'"),
        ({"bits": 3, "mixed": {"average_bits": 4}}, "bits or mixed, not both"),
        (
            {"method": "gptq", "sequential": True, "mixed": {"average_bits": 4}},
            "leave it out with mixed",
        ),
        (
            {"bias_correction": True, "mixed": {"average_bits": 4}},
            "measures the harm of weights alone",
        ),
        ({"mixed": {}}, "exactly one of average_bits and max_accuracy_drop"),
        ({"mixed": {"average_bits": 4, "max_accuracy_drop": 0.1}}, "both is given"),
        ({"mixed": {"average_bits": 4, "choices": [2, 2]}}, "different numbers from 2 to 8"),
        ({"mixed": {"average_bits": 4, "choices": [1, 4]}}, "different numbers from 2 to 8"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(options: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        QuantizeBits(**options)


def test_only_what_measures_needs_data_and_only_accuracy_needs_labels() -> None:
    assert not QuantizeBits().needs_data
    assert QuantizeBits(method="awq").needs_data
    assert QuantizeBits(bias_correction=True).needs_data
    assert QuantizeBits(mixed={"average_bits": 4}).needs_data
    assert not QuantizeBits(mixed={"average_bits": 4}).needs_labels
    assert QuantizeBits(mixed={"max_accuracy_drop": 0.01}).needs_labels


def test_choices_are_put_in_order() -> None:
    step = QuantizeBits(mixed={"average_bits": 4, "choices": [8, 2, 4]})
    assert step.mixed is not None
    assert step.mixed.choices == (2, 4, 8)


def test_mixed_survives_being_written_with_its_defaults() -> None:
    step = QuantizeBits(mixed={"average_bits": 4})
    assert QuantizeBits.model_validate_json(step.model_dump_json()) == step
