"""Whether a dataset fits a model, judged from their inspections alone."""

from __future__ import annotations

import pytest

from app import fitting
from modelpress.spec.inspection import DatasetInspection, ModelInspection, TensorInfo
from modelpress.spec.job import Images
from modelpress.spec.problem import Problem
from tests import actor

Shape = tuple[int | str | None, ...]


def tensor(name: str, shape: Shape, dtype: str = "float32") -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=shape)


def model(*inputs: TensorInfo, classes: int | str | None = 3) -> ModelInspection:
    output = tensor("y", ("N", classes))
    return actor.MODEL.model_copy(update={"inputs": inputs, "outputs": (output,)})


def arrays(*found: TensorInfo, labels: int = 3) -> DatasetInspection:
    return actor.DATASET.model_copy(update={"arrays": found, "histogram": (1,) * labels})


PLAIN = Images()
IMAGES = actor.DATASET.model_copy(
    update={"format": "images", "arrays": (tensor("images", (10, 8, 8, 3), "uint8"),)}
)


def judge(
    wanted: ModelInspection, found: DatasetInspection, images: Images = PLAIN
) -> list[Problem]:
    return fitting.problems(wanted, found, images, pointer="/data/train")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (tensor("x", ("N", 4)), tensor("x", (10, 4))),
        (tensor("x", (1, 4)), tensor("any name", (10, 4))),
        (tensor("x", ("N", "L")), tensor("x", (10, 7))),
        (tensor("x", (None, None)), tensor("x", (10, 7))),
        (tensor("x", ("N", 4)), tensor("x", (10, 4), "float64")),
        (tensor("x", ("N", 4)), tensor("x", (10, 4), "uint8")),
        (tensor("x", ("N", 4), "int64"), tensor("x", (10, 4), "int32")),
    ],
)
def test_array_that_can_feed_the_input_passes(wanted: TensorInfo, found: TensorInfo) -> None:
    assert judge(model(wanted), arrays(found)) == []


def test_arrays_find_their_inputs_by_name_and_others_are_left_aside() -> None:
    wanted = model(tensor("ids", ("N", 4), "int64"), tensor("mask", ("N", 4), "int64"))
    found = arrays(*(tensor(name, (10, 4), "int64") for name in ("mask", "ids", "more")))
    assert judge(wanted, found) == []


@pytest.mark.parametrize(
    ("wanted", "found", "code", "says"),
    [
        (tensor("x", ("N", 4)), tensor("x", (10, 5)), "wrong_shape", "[10, 5]"),
        (tensor("x", ("N", 4)), tensor("x", (10, 4, 1)), "wrong_shape", "reshape(-1, 4)"),
        (
            tensor("x", ("N", 3, 8, 9)),
            tensor("x", (10, 8, 9, 3)),
            "wrong_shape",
            "transpose(0, 3, 1, 2)",
        ),
        (tensor("x", ("N", 4), "int64"), tensor("x", (10, 4)), "wrong_dtype", "int64"),
        (tensor("x", ("N", 4), "bool"), tensor("x", (10, 4), "uint8"), "wrong_dtype", "bool"),
    ],
)
def test_array_that_can_not_feed_the_input_is_named_with_the_way_out(
    wanted: TensorInfo, found: TensorInfo, code: str, says: str
) -> None:
    [problem] = judge(model(wanted), arrays(found))
    assert (problem.pointer, problem.code) == ("/data/train", code)
    assert says in problem.reason + problem.hint


def test_every_input_without_an_array_is_named() -> None:
    wanted = model(tensor("a", ("N", 4)), tensor("b", ("N", 4)))
    problems = judge(wanted, arrays(tensor("x", (10, 4))))
    assert [problem.code for problem in problems] == ["missing_array", "missing_array"]
    assert "'a'" in problems[0].reason


@pytest.mark.parametrize(("classes", "fits"), [(3, True), (4, True), ("C", True), (2, False)])
def test_labels_beyond_the_model_s_classes_are_refused(classes: int | str, *, fits: bool) -> None:
    problems = judge(model(tensor("x", ("N", 4)), classes=classes), arrays(tensor("x", (10, 4))))
    assert [problem.code for problem in problems] == ([] if fits else ["labels_out_of_range"])


@pytest.mark.parametrize(
    "shape", [("N", 3, 32, 32), ("N", 32, 32, 3), ("N", 1, "H", "W"), ("N", 28, 28)]
)
def test_images_feed_an_input_of_images(shape: Shape) -> None:
    assert judge(model(tensor("x", shape)), IMAGES) == []


@pytest.mark.parametrize(
    "inputs",
    [
        (tensor("x", ("N", 4)),),
        (tensor("x", ("N", 7, 32, 32)),),
        (tensor("x", ("N", 3, 32, 32), "int64"),),
        (tensor("x", ("N", 3, 8, 8)), tensor("z", ("N", 3, 8, 8))),
    ],
)
def test_images_feed_nothing_else(inputs: tuple[TensorInfo, ...]) -> None:
    assert [problem.code for problem in judge(model(*inputs), IMAGES)] == ["no_image_input"]


def test_mean_and_std_are_one_for_all_channels_or_one_for_each() -> None:
    wanted = model(tensor("x", ("N", 3, 32, 32)))
    assert judge(wanted, IMAGES, Images(mean=(0.1, 0.2, 0.3))) == []
    [problem] = judge(wanted, IMAGES, Images(mean=(0.1, 0.2)))
    assert (problem.pointer, problem.code) == ("/data/images/mean", "wrong_channels")
