"""A model with its weights beside it comes as a zip of both."""

from __future__ import annotations

import zipfile

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from modelpress.spec import order
from modelpress.spec.inspection import ModelInspection
from tests.engine import nets
from workers.engine import errors, formats, inspection
from workers.engine.formats import bundle
from workers.engine.formats import onnx as onnx_format


@pytest.fixture
def folder(tmp_path):
    """net.onnx and net.onnx.data."""
    made = tmp_path / "made"
    made.mkdir()
    onnx.save(
        nets.plain_cnn(),
        made / "net.onnx",
        save_as_external_data=True,
        location="net.onnx.data",
        size_threshold=64,
    )
    return made


@pytest.fixture
def work(tmp_path):
    made = tmp_path / "work"
    made.mkdir()
    return made


def _zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files:
            opened.writestr(name, content)
    return path


def _files(folder, top=""):
    return [(f"{top}{file.name}", file.read_bytes()) for file in sorted(folder.iterdir())]


@pytest.mark.parametrize("top", ["", "my model/"])
def test_an_inspection_makes_one_file_of_a_model_and_its_weights(top, folder, tmp_path):
    jobdir = tmp_path / "job"
    for name in (order.INPUT, order.WORK, order.OUTPUT):
        (jobdir / name).mkdir(parents=True)
    _zip(jobdir / order.INPUT / "model", _files(folder, top))
    asked = order.InspectOrder(kind="model", file=order.FileRef(path=f"{order.INPUT}/model"))
    (jobdir / order.ORDER).write_text(asked.model_dump_json())
    inspection.inspect(jobdir)
    found = ModelInspection.model_validate_json((jobdir / order.INSPECTION).read_bytes())
    assert found.format == "onnx_zip"
    assert found.inputs[0].shape[0] == "batch"
    feeds = nets.feeds(nets.plain_cnn(), 3)
    want = ort.InferenceSession(folder / "net.onnx").run(None, feeds)[0]
    got = ort.InferenceSession(jobdir / order.CONVERTED).run(None, feeds)[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_model_without_its_weights_is_refused_with_the_way_out(folder):
    (folder / "net.onnx.data").unlink()
    with pytest.raises(errors.BadModel, match="not next to the model") as caught:
        formats.load(folder / "net.onnx")
    assert "zip of the model and that file" in caught.value.hint


def _two_models(folder):
    return [*_files(folder), ("other.onnx", b"")]


def _two_folders(folder):
    return [("net.onnx", (folder / "net.onnx").read_bytes()), *_files(folder, "a/")[1:]]


def _climbing(folder):
    return [("../net.onnx", b""), ("../../net.onnx.data", b"")]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (_two_models, "2 .onnx files"),
        (_two_folders, "not in one folder"),
        (_climbing, "not in one folder"),
    ],
)
def test_a_zip_of_something_else_is_refused(files, message, folder, work):
    path = _zip(work / "model.zip", files(folder))
    with pytest.raises(errors.BadModel, match=message):
        bundle.load(path, work)
    assert not (work.parent / "net.onnx").exists()


def test_a_file_from_above_lands_in_the_work_folder(folder, work):
    path = _zip(work / "model.zip", _files(folder, "../../"))
    assert bundle.load(path, work).nodes
    assert sorted(p.name for p in work.parent.iterdir()) == ["made", "work"]


def test_a_damaged_zip_is_refused(folder, work):
    path = _zip(work / "model.zip", _files(folder))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(errors.BadModel, match="damaged"):
        bundle.load(path, work)


def test_a_bomb_is_refused_before_it_is_unpacked(folder, work, monkeypatch):
    monkeypatch.setattr(bundle, "MAX_BYTES", 1000)
    path = _zip(work / "model.zip", _files(folder))
    with pytest.raises(errors.BadModel, match="the limit is 1,000"):
        bundle.load(path, work)
    assert not list((work / "bundle").iterdir())


def test_more_weights_than_one_file_holds_are_refused(folder, work, monkeypatch):
    monkeypatch.setattr(onnx_format, "INLINE_BYTES", onnx_format.ROOM_BYTES + 1000)
    path = _zip(work / "model.zip", _files(folder))
    with pytest.raises(errors.Unsupported, match="2 GiB"):
        bundle.load(path, work)
