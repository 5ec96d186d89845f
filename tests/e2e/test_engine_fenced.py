"""The real engine inside the real fence: what it needs is there, and what a hostile file gets is a refusal."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from modelpress.spec import order, recipe
from modelpress.spec.inspection import DatasetInspection, ModelInspection
from modelpress.spec.job import Limits
from modelpress.spec.progress import Progress
from modelpress.spec.report import Report
from modelpress.spec.state import FailureClass
from tests.engine import jobs, nets
from workers import attempt, sandbox

pytestmark = pytest.mark.e2e

STEPS = [
    {"kind": "prune.magnitude", "sparsity": 0.5, "rounds": 2, "fine_tune": {"epochs": 1}},
    {"kind": "quantize.int8"},
]
LIMITS = Limits(max_runtime_s=300)


def inspect(jobdir: Path, kind: str, name: str, limits: Limits = LIMITS) -> attempt.Ended:
    asked = order.InspectOrder(kind=kind, file=order.FileRef(path=f"input/{name}"))
    (jobdir / order.ORDER).write_text(asked.model_dump_json())
    return attempt.run(jobdir, limits=limits)


@pytest.fixture
def jobdir(tmp_path: Path) -> Path:
    (tmp_path / order.INPUT).mkdir()
    return tmp_path


def test_recipe_runs_inside_and_its_artifact_outside(tmp_path: Path) -> None:
    model = nets.NETS["plain_cnn"](0)
    jobs.make(tmp_path, model, STEPS, train=jobs.arrays_of(model, 64))
    heard: list[Progress] = []
    stages: list[Report] = []
    ended = attempt.run(tmp_path, limits=LIMITS, on_progress=heard.append, on_stage=stages.append)
    assert ended.how == "succeeded", (ended.failure, ended.log_tail)
    assert ended.sandbox == sandbox.level()
    assert ended.sandbox.endswith("+seccomp")
    assert ended.report is not None
    assert ended.report.verification is not None
    assert ended.report.verification.ok
    assert [stage.name for stage in ended.report.stages] == [
        "baseline",
        "prune.magnitude",
        "quantize.int8",
    ]
    assert len(stages[-1].stages) == 3
    assert {h.stage for h in heard} == {0, 1, 2, 3}
    assert "telemetry" not in ended.log_tail
    session = onnxruntime.InferenceSession(str(ended.artifacts[0].path))
    assert session.run(None, nets.feeds(model, 5))[0].shape == (5, nets.CLASSES)


def test_model_is_inspected_inside(jobdir: Path) -> None:
    onnx.save(nets.NETS["plain_cnn"](0), jobdir / order.INPUT / "model.onnx")
    ended = inspect(jobdir, "model", "model.onnx")
    assert ended.how == "succeeded", (ended.failure, ended.log_tail)
    assert isinstance(ended.inspection, ModelInspection)
    asked = ended.inspection.capabilities
    assert {k for family in asked.values() for k, step in family.steps.items() if step.ok} == set(
        recipe.STEPS
    )


def test_images_are_decoded_inside(jobdir: Path) -> None:
    """Pillow and its shared libraries, for each format."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    with zipfile.ZipFile(jobdir / order.INPUT / "data.zip", "w") as archive:
        for folder in ("cat", "dog"):
            for suffix in ("png", "jpg", "webp"):
                picture = jobdir / f"picture.{suffix}"
                Image.fromarray(pixels).save(picture)
                archive.write(picture, f"{folder}/1.{suffix}")
    ended = inspect(jobdir, "dataset", "data.zip")
    assert ended.how == "succeeded", (ended.failure, ended.log_tail)
    assert isinstance(ended.inspection, DatasetInspection)
    assert ended.inspection.samples == 6


def test_file_that_is_no_model_is_the_users_fault(jobdir: Path) -> None:
    (jobdir / order.INPUT / "model.onnx").write_bytes(b"MZ this is no model")
    ended = inspect(jobdir, "model", "model.onnx")
    assert ended.how == "failed"
    assert ended.failure is not None
    assert ended.failure.class_ is FailureClass.USER_INPUT


def test_external_data_outside_the_job_can_not_be_read(jobdir: Path, tmp_path: Path) -> None:
    """Refused by the engine by name; were it not, the fence would have refused the file."""
    model = nets.NETS["mlp"](0)
    path = jobdir / order.INPUT / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    loaded = onnx.load(path, load_external_data=False)
    for tensor in loaded.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../../../../../etc/passwd"
    path.write_bytes(loaded.SerializeToString())
    ended = inspect(jobdir, "model", "model.onnx")
    assert ended.how == "failed"
    assert ended.failure is not None
    assert ended.failure.class_ is FailureClass.USER_INPUT
    assert "root:" not in ended.log_tail
