"""`modelpress unpack`, as it is typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from modelpress import _unpack, errors
from tests.engine import nets
from workers.engine.formats import packing


@pytest.fixture
def model(tmp_path) -> Path:
    """A model beside its packed file."""
    path = tmp_path / "net.onnx"
    onnx.save(nets.NETS["mlp"](0), path)
    packing.pack(path, path.with_suffix(".mpk"), "entropy")
    return path


def typed(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelpress", "unpack", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_model_comes_out_byte_for_byte(model, tmp_path):
    done = typed(model.with_suffix(".mpk"), "-o", tmp_path / "out.onnx")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.onnx").read_bytes() == model.read_bytes()
    assert f"{model.stat().st_size:,} bytes" in done.stdout


@pytest.mark.parametrize("name", ["net.mpk", "link.onnx"])
def test_the_packed_file_is_not_written_over(name, model, tmp_path):
    packed = model.with_suffix(".mpk")
    before = packed.read_bytes()
    (tmp_path / "link.onnx").symlink_to(packed)
    done = typed(packed, "-o", tmp_path / name)
    assert done.returncode == 1
    assert "name another file" in done.stderr
    assert packed.read_bytes() == before


def test_a_folder_that_does_not_exist_is_named(model, tmp_path):
    done = typed(model.with_suffix(".mpk"), "-o", tmp_path / "missing" / "out.onnx")
    assert done.returncode == 2
    told = "".join(done.stderr.split())
    assert "thefolderdoesnotexist" in told
    assert "unfinished" not in told
    assert "Traceback" not in told


def test_a_damaged_file_is_refused_and_leaves_nothing(model, tmp_path):
    packed = model.with_suffix(".mpk")
    content = np.frombuffer(packed.read_bytes(), np.uint8).copy()
    content[len(content) // 2] ^= 1
    packed.write_bytes(content.tobytes())
    done = typed(packed, "-o", tmp_path / "out.onnx")
    assert done.returncode == 1
    assert "net.mpk" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*out.onnx*"))


def test_a_model_that_is_larger_than_allowed_is_refused_with_both_sizes(model, tmp_path):
    done = typed(model.with_suffix(".mpk"), "-o", tmp_path / "out.onnx", "--max-bytes", 100)
    assert done.returncode == 1
    assert "100" in done.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_without_its_coder_it_says_what_to_install(model, monkeypatch, tmp_path):
    monkeypatch.setattr(_unpack, "NEEDED", ("numpy", "a_coder_that_nobody_has"))
    with pytest.raises(errors.ModelPressError, match=r"a_coder.*modelpress\[packed\]"):
        _unpack.run(model.with_suffix(".mpk"), tmp_path / "out.onnx", None)
