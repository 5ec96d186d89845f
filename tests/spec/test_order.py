"""What passes between a worker and its child: no path leads out of the job directory, no line is endless."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from modelpress.spec import named, order, progress

ORDERS: TypeAdapter[order.Order] = TypeAdapter(order.Order)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "input/../order.json",
        "input/a/b",
        "input/",
        "input/.hidden",
        "../input/model.onnx",
        "input/a\n",
        "input/" + "a" * 129,
        "output/model.onnx",
        "",
    ],
)
def test_path_outside_the_inputs_is_refused(path: str) -> None:
    with pytest.raises(ValidationError):
        order.FileRef(path=path)


def test_orders_are_told_apart_by_their_task() -> None:
    model = order.FileRef(path="input/model.onnx")
    for wanted in (
        order.CompressOrder(model=model, recipe=named.NAMED["int8"]),
        order.InspectOrder(kind="model", file=model),
    ):
        assert ORDERS.validate_json(ORDERS.dump_json(wanted)) == wanted


@pytest.mark.parametrize(
    "wrong",
    [
        {"fraction": 1.5},
        {"fraction": float("nan")},
        {"stage": -1},
        {"message": "x" * 501},
        {"name": "x" * 129},
        {"event": "done"},
    ],
)
def test_progress_of_a_lying_child_is_refused(wrong: dict[str, object]) -> None:
    right = {"stage": 0, "stages": 3, "name": "baseline", "fraction": 0.0}
    assert progress.Progress.model_validate(right)
    with pytest.raises(ValidationError):
        progress.Progress.model_validate({**right, **wrong})


def test_longest_progress_fits_a_line() -> None:
    longest = progress.Progress(
        stage=99, stages=99, name="\u20ac" * 128, fraction=1 / 3, message="\U0001f600" * 500
    )
    assert len(longest.model_dump_json().encode()) < progress.MAX_LINE_BYTES
