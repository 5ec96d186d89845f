from __future__ import annotations

import pytest
from pydantic import ValidationError

from modelpress.spec import recipe
from modelpress.spec.quantize import QuantizeBinary, QuantizeCluster


@pytest.mark.parametrize(
    ("method", "ends", "activations"),
    [
        ("bwn", True, False),
        ("xnor", True, True),
        ("bnn", False, True),
        ("binary_connect", False, False),
        ("ternary", False, False),
    ],
)
def test_a_method_binarizes_what_its_paper_does(method, ends, activations) -> None:
    step = QuantizeBinary(method=method)
    assert (step.leaves_ends, step.signs_activations) == (ends, activations)
    assert QuantizeBinary(method=method, float_ends=not ends).leaves_ends is not ends


def test_random_signs_belong_to_binary_connect() -> None:
    assert QuantizeBinary(method="binary_connect", stochastic=True).stochastic
    with pytest.raises(ValidationError, match="method is 'ternary'"):
        QuantizeBinary(method="ternary", stochastic=True)


def test_binary_weights_are_trained_and_need_labels() -> None:
    assert QuantizeBinary().needs_labels
    assert not QuantizeCluster().needs_data
    assert QuantizeCluster(fine_tune={}).needs_labels


@pytest.mark.parametrize("kind", ["quantize.binary", "quantize.cluster"])
def test_codes_can_not_be_pruned_afterwards(kind: str) -> None:
    asked = recipe.parse({"steps": [{"kind": kind}, {"kind": "prune.magnitude", "sparsity": 0.5}]})
    (problem,) = asked.problems(has_data=True, has_labels=True)
    assert problem.code == "wrong_order"


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_of_codes_are_one_to_eight(bits: int) -> None:
    with pytest.raises(ValidationError, match="bits"):
        QuantizeCluster(bits=bits)
    with pytest.raises(ValidationError, match="bits"):
        QuantizeCluster(overrides=[{"layers": "*", "bits": bits}])
