"""The process that unpacks what a job packed, and compares."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from modelpress.spec import order
from tests.packed import making
from workers.engine import unpacking
from workers.engine.errors import ExportMismatch


@pytest.fixture
def jobdir(tmp_path: Path) -> Path:
    """A job that has packed its model."""
    artifacts = tmp_path / "job" / order.ARTIFACTS
    artifacts.mkdir(parents=True)
    (tmp_path / "job" / order.WORK).mkdir()
    rng = np.random.default_rng(0)
    making.packed_file(artifacts, w=rng.integers(0, 5, (60, 40)).astype(np.float32))
    return tmp_path / "job"


def test_what_came_out_is_told_and_not_kept(jobdir: Path) -> None:
    assert unpacking.read(jobdir) is None
    unpacking.unpack(jobdir)
    found, model = unpacking.read(jobdir), jobdir / order.ARTIFACTS / order.ONNX
    assert found is not None
    assert found.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert found.size_bytes == model.stat().st_size
    assert found.seconds > 0
    assert list((jobdir / order.WORK).iterdir()) == []


@pytest.mark.parametrize("at", [0, 10, 100, -40, -1])
def test_no_changed_byte_goes_unseen(jobdir: Path, at: int) -> None:
    file = jobdir / order.ARTIFACTS / order.PACKED
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(ExportMismatch, match="can't be unpacked"):
        unpacking.unpack(jobdir)
    assert unpacking.read(jobdir) is None


def test_file_that_ends_early_is_refused(jobdir: Path) -> None:
    file = jobdir / order.ARTIFACTS / order.PACKED
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ExportMismatch, match="can't be unpacked"):
        unpacking.unpack(jobdir)


@pytest.mark.parametrize("change", [1.0, None])
def test_packed_file_of_another_model_is_refused(
    jobdir: Path, tmp_path: Path, change: float | None
) -> None:
    """One of the same size, and a longer one."""
    artifacts = jobdir / order.ARTIFACTS
    rng = np.random.default_rng(0)
    w = rng.integers(0, 5, (60, 40)).astype(np.float32)
    arrays = {"w": w + change} if change is not None else {"w": w, "more": w[:2]}
    (tmp_path / "other").mkdir()
    _, other = making.packed_file(tmp_path / "other", **arrays)
    shutil.copyfile(other, artifacts / order.PACKED)
    with pytest.raises(ExportMismatch, match="gives another file"):
        unpacking.unpack(jobdir)
