from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from modelpress.spec.inspection import TensorInfo
from tests.engine.data import zips
from workers.engine import data
from workers.engine.errors import BadData, EngineError, Unsupported

INPUTS = [zips.IMAGE_INPUT]


def tensor(name: str, dtype: str, *shape: int | str | None) -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=shape)


def opened(path: Path, inputs: list[TensorInfo] = INPUTS) -> data.Dataset:
    return data.open(path, inputs, zips.PLAIN, path.parent)


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path / "data.npz", **arrays)
    return path / "data.npz"


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_and_labels_come_back(tmp_path: Path, write) -> None:
    image = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    write(tmp_path / "data.npz", image=image, labels=[3, 1, 0, 2, 2])
    dataset = opened(tmp_path / "data.npz")
    assert (dataset.samples, dataset.input_names) == (5, ("image",))
    np.testing.assert_array_equal(dataset.batch([4, 0])["image"], image[[4, 0]])
    np.testing.assert_array_equal(dataset.labels, [3, 1, 0, 2, 2])
    assert dataset.notes == ()


def test_stored_arrays_are_mapped_and_never_copied_whole(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.zeros((64, 1 << 18), np.float32))
    tracemalloc.start()
    try:
        dataset = opened(path, [tensor("x", "float32", "n", 1 << 18)])
        dataset.batch([0])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 24 << 20  # of 64 MiB
    assert not list(tmp_path.glob("data-*/*"))


def test_fortran_and_big_endian_arrays_are_read(tmp_path: Path) -> None:
    x = np.asfortranarray(np.arange(12, dtype=">f4").reshape(3, 4))
    batch = opened(save(tmp_path, x=x), [tensor("x", "float32", None, 4)]).batch([0, 2])["x"]
    np.testing.assert_array_equal(batch, x[[0, 2]])
    assert batch.dtype.isnative
    assert batch.flags.c_contiguous


def test_labels_may_be_absent(tmp_path: Path) -> None:
    dataset = opened(save(tmp_path, anything=np.zeros((4, 1, 8, 8), np.float32)))
    assert dataset.labels is None
    assert dataset.input_names == ("image",)


def test_a_column_of_labels_is_read(tmp_path: Path) -> None:
    path = zips.digits(tmp_path / "a.npz", labels=np.array([[1], [0]] * 20, np.uint8))
    np.testing.assert_array_equal(opened(path).labels, [1, 0] * 20)


def test_inputs_are_matched_by_name_in_the_order_of_the_model(tmp_path: Path) -> None:
    a, b = np.zeros((3, 2), np.float32), np.ones((3, 2), np.int64)
    inputs = [tensor("b", "int64", "n", "t"), tensor("a", "float32", "n", "t")]
    dataset = opened(save(tmp_path, a=a, b=b, extra=a), inputs)
    assert dataset.input_names == ("b", "a")
    assert dataset.batch([0])["b"].tolist() == [[1, 1]]
    assert dataset.notes == ("arrays that feed no input are left aside: extra",)


@pytest.mark.parametrize("dtype", ["float64", "float16", "uint8", "int64", "bool"])
def test_a_cast_keeps_values_and_is_noted(tmp_path: Path, dtype: str) -> None:
    x = np.array([[0, 1], [1, 1]]).astype(dtype)
    dataset = opened(save(tmp_path, x=x), [tensor("x", "float32", "n", 2)])
    batch = dataset.batch([0, 1])["x"]
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch, x.astype(np.float32))
    assert dataset.notes == (f"array 'x' is cast from {dtype} to float32, values kept",)


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.zeros((3, 4), np.float32), y=np.zeros(3, np.int64))
    with pytest.raises(BadData, match=r"inputs \['image'\]; its arrays are \['x', 'y'\]") as caught:
        opened(path)
    assert "name it 'labels'" in caught.value.hint


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((4, 8, 8, 1), "transpose(0, 3, 1, 2)"),
        ((4, 64), "reshape(-1, 1, 8, 8)"),
        ((4, 3, 32, 32), "trained on"),
        ((4,), "trained on"),
    ],
)
def test_a_shape_that_does_not_fit_is_named_with_the_way_out(tmp_path: Path, shape, hint) -> None:
    path = save(tmp_path, image=np.zeros(shape, np.float32))
    with pytest.raises(BadData, match="wants") as caught:
        opened(path)
    assert str(list(shape)) in caught.value.message
    assert "[samples, 1, 8, 8]" in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.layer == "image"


def test_channels_first_for_a_channels_last_model_is_told(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.zeros((2, 3, 4, 5), np.float32))
    with pytest.raises(BadData) as caught:
        opened(path, [tensor("x", "float32", "n", 4, 5, 3)])
    assert "transpose(0, 2, 3, 1)" in caught.value.hint


def test_a_symbol_means_one_size_throughout(tmp_path: Path) -> None:
    inputs = [tensor("ids", "int64", "n", "t"), tensor("mask", "int64", "n", "t")]
    path = save(tmp_path, ids=np.zeros((2, 5), np.int64), mask=np.zeros((2, 6), np.int64))
    with pytest.raises(BadData, match=r"'mask' has shape \[2, 6\].*wants \[samples, 5\]"):
        opened(path, inputs)


def test_arrays_of_unequal_length_are_refused(tmp_path: Path) -> None:
    inputs = [tensor("a", "float32", "n", 2), tensor("b", "float32", "n", 2)]
    path = save(tmp_path, a=np.zeros((3, 2), np.float32), b=np.zeros((4, 2), np.float32))
    with pytest.raises(BadData, match="differ in their number of samples"):
        opened(path, inputs)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_named_by_sample(tmp_path: Path, value: float) -> None:
    image = np.zeros((40, 1, 8, 8), np.float32)
    image[7, 0, 3, 2] = value
    with pytest.raises(BadData, match=f"array 'image' holds {value} in sample 7"):
        opened(zips.digits(tmp_path / "a.npz", image=image))


def test_a_value_that_overflows_the_cast_is_refused(tmp_path: Path) -> None:
    image = np.zeros((40, 1, 8, 8))
    image[39] = 1e39
    with pytest.raises(BadData, match=r"1e\+39 in sample 39"):
        opened(zips.digits(tmp_path / "a.npz", image=image))


def test_an_integer_out_of_range_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, ids=np.array([[1], [1 << 40]]))
    with pytest.raises(BadData, match="1099511627776 in sample 1, outside the range"):
        opened(path, [tensor("ids", "int32", "n", 1)])


def test_floats_never_become_integers_silently(tmp_path: Path) -> None:
    path = save(tmp_path, ids=np.array([[1.5]]))
    with pytest.raises(BadData, match="float64, but the model's input wants int64"):
        opened(path, [tensor("ids", "int64", "n", 1)])


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.full(40, -1), "sample 0 has label -1"),
        (np.full(40, 100_000), "label 100000, outside 0 to 99,999"),
        (np.zeros(40, np.float32), "they are float32"),
        (np.zeros((40, 4), np.int64), r"shape is \[40, 4\]"),
        (np.zeros(39, np.int64), "39 labels, but array 'image' has 40"),
        (np.array(["cat"] * 40), "elements of type"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, labels, reason: str) -> None:
    with pytest.raises(BadData, match=reason) as caught:
        opened(zips.digits(tmp_path / "a.npz", labels=labels))
    assert caught.value.layer == "labels"


def test_labels_beyond_the_models_classes_are_refused(tmp_path: Path) -> None:
    labels = opened(zips.digits(tmp_path / "a.npz")).labels
    data.check_classes(labels, 4)
    with pytest.raises(BadData, match=r"label 3, but the model's output has 3 classes: .* 0 to 2"):
        data.check_classes(labels, 3)


def test_object_arrays_are_refused_and_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, image=np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    with pytest.raises(BadData, match="'image' is refused: it holds Python objects"):
        opened(path)


def test_a_deflated_array_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, image=np.zeros((40, 1, 8, 8), np.float32))
    at = zips.entry(path, "image.npy")
    zips.patched(path, at + 24, struct.pack("<L", 128))
    with pytest.raises(BadData, match="claims 128 bytes but holds more"):
        opened(path)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a.txt": b"1"}, "neither arrays"),
        ({}, "neither arrays"),
        ({"a.npy": zips.npy(np.ones(3)), "evil.pkl": b"1"}, "'evil.pkl' is no array"),
        ({f"{n}.npy": zips.npy(np.ones(3)) for n in range(65)}, "65 arrays, more than 64"),
    ],
)
def test_other_archives_are_refused(tmp_path: Path, members, reason: str) -> None:
    with pytest.raises(BadData, match=reason):
        opened(zips.zipped(tmp_path / "a.zip", members))


def test_inputs_that_no_array_can_feed_are_unsupported(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.zeros((3, 4), np.float32))
    with pytest.raises(Unsupported, match="bfloat16"):
        opened(path, [tensor("x", "bfloat16", "n", 4)])
    with pytest.raises(Unsupported, match="declares no dimensions"):
        opened(path, [tensor("x", "float32")])


def test_every_refusal_has_a_hint_and_a_failure_record(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        opened(zips.digits(tmp_path / "a.npz", labels=np.full(40, -1)))
    failure = caught.value.failure("baseline")
    assert (failure.code, failure.blame, failure.layer) == ("bad_data", "user", "labels")
    assert failure.hint
