"""What a model file is, and what to do with one that is not read."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.engine import jobs
from workers.engine import formats
from workers.engine.errors import BadModel, Unsupported


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return path


def test_formats_that_are_read_are_known_whatever_the_file_is_called(tmp_path: Path) -> None:
    jobs.load("mlp", tmp_path)
    assert formats.format_of(tmp_path / "mlp.onnx") == "onnx"
    assert formats.format_of(zipped(tmp_path / "a", "net/archive_format", "net/x")) == "pt2"
    early = zipped(tmp_path / "b", "serialized_exported_program.json")
    assert formats.format_of(early) == "pt2"
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "c")
    assert formats.format_of(tmp_path / "c") == "safetensors"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x89HDF\r\n\x1a\n", "Keras"),
        (b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        (pickle.dumps({"a": 1}), "pickle"),
    ],
)
def test_other_formats_are_refused_by_name(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(Unsupported, match=said) as raised:
        formats.format_of(tmp_path / "model")
    assert raised.value.hint


def test_what_torch_pickles_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "state.pt")
    with pytest.raises(Unsupported, match=r"torch\.save"):
        formats.format_of(tmp_path / "state.pt")
    script = zipped(tmp_path / "script.pt", "net/data.pkl", "net/constants.pkl", "net/code/a.py")
    with pytest.raises(Unsupported, match="TorchScript"):
        formats.format_of(script)


def test_other_zips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="zip"):
        formats.format_of(zipped(tmp_path / "a.zip", "cat/1.png"))
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(BadModel, match="damaged"):
        formats.format_of(tmp_path / "b.zip")
