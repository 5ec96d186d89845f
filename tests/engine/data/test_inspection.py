from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modelpress.spec.inspection import TensorInfo
from tests.engine.data import zips
from workers.engine import data
from workers.engine.errors import BadData


def test_arrays_are_described_without_a_model(tmp_path: Path) -> None:
    found = data.inspect(zips.digits(tmp_path / "a.npz"), tmp_path)
    assert found.format == "npz"
    assert found.samples == 40
    assert found.arrays == (TensorInfo(name="image", dtype="float32", shape=(40, 1, 8, 8)),)
    assert found.labels == TensorInfo(name="labels", dtype="int64", shape=(40,))
    assert found.histogram == (10, 10, 10, 10)
    assert found.notes == ()


def test_rare_and_absent_labels_are_noted(tmp_path: Path) -> None:
    labels = np.array([0] * 35 + [2] * 5)
    found = data.inspect(zips.digits(tmp_path / "a.npz", labels=labels), tmp_path)
    assert found.histogram == (35, 0, 5)
    assert found.notes == (
        "labels without samples: 1 (1 in all)",
        "labels with fewer than 10 samples: 2 (1 in all)",
    )


def test_a_bare_unlabelled_file_is_described(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.zeros((3, 2)))
    found = data.inspect(tmp_path / "a.npz", tmp_path)
    assert (found.samples, found.labels, found.histogram) == (3, None, ())
    assert found.arrays[0].name == "arr_0"


def test_images_are_described_without_a_model(tmp_path: Path) -> None:
    members = {
        "cat/1.png": zips.picture((10, 6)),
        "cat/2.png": zips.picture((10, 6)),
        "dog/1.png": zips.picture((10, 8)),
    }
    found = data.inspect(zips.zipped(tmp_path / "a.zip", members), tmp_path)
    assert found.format == "images"
    assert found.arrays == (TensorInfo(name="images", dtype="uint8", shape=(3, None, 10, 3)),)
    assert (found.classes, found.histogram) == (("cat", "dog"), (2, 1))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"image": np.full((40, 1), np.nan)}, "holds nan in sample 0"),
        ({"labels": np.arange(40) - 1}, "label -1"),
        ({"other": np.zeros((39, 1))}, "40 labels|39 samples"),
    ],
)
def test_what_no_model_could_use_is_refused_at_once(tmp_path: Path, arrays, reason: str) -> None:
    with pytest.raises(BadData, match=reason):
        data.inspect(zips.digits(tmp_path / "a.npz", **arrays), tmp_path)


def test_labels_alone_are_no_dataset(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", labels=np.arange(3))
    with pytest.raises(BadData, match="labels and nothing else"):
        data.inspect(tmp_path / "a.npz", tmp_path)
