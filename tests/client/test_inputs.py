"""What people type is made into what the client takes, or is a usage error."""

from __future__ import annotations

import pytest
import typer

from modelpress import _inputs

MODELS = {"initial": "untrained.safetensors", "teacher": "big.onnx"}


@pytest.mark.parametrize(
    ("given", "own", "others"),
    [
        (None, None, {}),
        (["resnet18"], "resnet18", {"initial": "resnet18"}),
        (["teacher=resnet50"], None, {"teacher": "resnet50"}),
        (["resnet18", "initial=vgg11"], "resnet18", {"initial": "vgg11"}),
    ],
)
def test_architecture_is_of_the_model_and_of_weights_beside_it(given, own, others) -> None:
    assert _inputs.architectures_of(MODELS, given) == (own, others)


@pytest.mark.parametrize(
    "given", [["a", "b"], ["student=resnet18"], ["teacher="], [""], ["teacher=a", "teacher=b"]]
)
def test_architecture_of_nothing_or_named_twice_is_wrong_usage(given: list[str]) -> None:
    with pytest.raises(typer.BadParameter, match="ROLE=NAME"):
        _inputs.architectures_of(MODELS, given)
