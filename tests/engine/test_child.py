"""The engine as its parent sees it: a process with arguments, an exit code, lines and files."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from modelpress.spec import order
from modelpress.spec.inspection import DatasetInspection, ModelInspection
from modelpress.spec.progress import Progress
from modelpress.spec.report import Report
from modelpress.spec.state import Failure, FailureClass
from tests.engine import jobs, nets
from workers.engine import __main__ as child
from workers.engine import inspection
from workers.engine.errors import BadData

ROOT = Path(__file__).parents[2]
STEPS = [
    {"kind": "prune.magnitude", "sparsity": 0.5, "rounds": 2, "fine_tune": {"epochs": 1}},
    {"kind": "quantize.int8"},
]
LOADED = """
import runpy, sys
sys.argv = ["engine", *sys.argv[1:]]
try:
    runpy.run_module("workers.engine", run_name="__main__")
finally:
    print("loaded:", *sorted({m.partition(".")[0] for m in sys.modules}), file=sys.stderr)
"""


def environment(jobdir: Path, **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def run(task: str, jobdir: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workers.engine", task, str(jobdir)],
        cwd=jobdir.parent,
        env=environment(jobdir, **more),
        capture_output=True,
        text=True,
        timeout=240,
    )


def failure_of(jobdir: Path) -> Failure:
    return Failure.model_validate_json((jobdir / order.FAILURE).read_bytes())


def job(folder: Path, steps=STEPS, **options) -> Path:
    model = nets.plain_cnn(0)
    return jobs.make(folder, model, steps, train=jobs.arrays_of(model, 80), **options)


def inspect_job(folder: Path, kind: str, content: bytes) -> Path:
    for name in (order.INPUT, order.WORK, order.OUTPUT):
        (folder / name).mkdir(parents=True)
    (folder / "input/file").write_bytes(content)
    asked = order.InspectOrder(kind=kind, file=order.FileRef(path="input/file"))
    (folder / order.ORDER).write_text(asked.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    jobdir = job(tmp_path_factory.mktemp("child") / "job")
    done = run("compress", jobdir, PYTHONHASHSEED="1")
    assert done.returncode == order.EXIT_OK, done.stderr
    return jobdir, done


@pytest.fixture
def copied(compressed, tmp_path):
    """A copy of the compressed job, to be spoilt."""
    return Path(shutil.copytree(compressed[0], tmp_path / "job"))


def test_two_children_make_the_same_bytes_whatever_the_hash_seed(compressed, copied):
    shutil.rmtree(copied / order.OUTPUT)
    done = run("compress", copied, PYTHONHASHSEED="2")
    assert done.returncode == order.EXIT_OK, done.stderr
    first, again = (d / order.ARTIFACTS / "model.onnx" for d in (compressed[0], copied))
    assert first.read_bytes() == again.read_bytes()


def test_standard_output_holds_progress_and_nothing_else(compressed):
    _, done = compressed
    said = [Progress.model_validate_json(line) for line in done.stdout.splitlines()]
    assert said[-1].event == "stage_done"
    assert said[-1].stages == len(STEPS) + 2


def test_a_fresh_process_verifies_without_torch(copied):
    done = subprocess.run(
        [sys.executable, "-c", LOADED, "verify", str(copied)],
        cwd=copied.parent,
        env=environment(copied),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == order.EXIT_OK, done.stderr
    loaded = set(done.stderr.split("loaded:")[1].split())
    assert "onnxruntime" in loaded
    assert not {"torch", "onnx_ir", "onnx"} & loaded
    report = Report.model_validate_json((copied / order.REPORT).read_bytes())
    assert report.complete
    assert report.verification.ok
    assert report.outcome


def test_nothing_is_left_outside_the_job(compressed):
    jobdir, _ = compressed
    assert sorted(p.name for p in jobdir.parent.iterdir()) == ["job"]
    allowed = {order.ORDER, order.INPUT, order.WORK, order.OUTPUT}
    assert {p.name for p in jobdir.iterdir()} == allowed


def test_a_broken_model_ends_with_a_failure_that_blames_the_file(tmp_path):
    jobdir = job(tmp_path / "job")
    (jobdir / "input/model.onnx").write_bytes(b"no model at all")
    done = run("compress", jobdir)
    assert done.returncode == order.EXIT_FAILED
    failure = failure_of(jobdir)
    assert (failure.class_, failure.stage) == (FailureClass.USER_INPUT, "baseline")
    assert "Traceback" in done.stderr
    assert not (jobdir / order.REPORT).exists()


def test_a_failing_step_is_named_and_the_report_stays(tmp_path):
    steps = [STEPS[0], {"kind": "prune.magnitude", "sparsity": 0.2}]
    jobdir = job(tmp_path / "job", steps)
    done = run("compress", jobdir)
    assert done.returncode == order.EXIT_FAILED
    failure = failure_of(jobdir)
    assert (failure.code, failure.stage) == ("nothing_changed", "steps/1")
    report = Report.model_validate_json((jobdir / order.REPORT).read_bytes())
    assert [stage.name for stage in report.stages] == ["baseline", "prune.magnitude"]


def test_a_tampered_artifact_fails_the_verification(copied):
    (copied / order.ARTIFACTS / "model.onnx").write_bytes(nets.plain_cnn(1).SerializeToString())
    assert run("verify", copied).returncode == order.EXIT_FAILED
    failure = failure_of(copied)
    assert (failure.code, failure.stage) == ("export_mismatch", "verify")


def test_a_model_is_inspected(tmp_path):
    jobdir = inspect_job(tmp_path / "job", "model", nets.plain_cnn(0).SerializeToString())
    inspection.inspect(jobdir)
    found = ModelInspection.model_validate_json((jobdir / order.INSPECTION).read_bytes())
    assert found.operators["Conv"] == 2
    assert found.inputs[0].shape == ("batch", 1, 8, 8)


def test_unsupported_operators_are_all_named(tmp_path):
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17, "vendor": 1]>
        net (float[batch, 4] x) => (float[batch, 4] y) { a = vendor.Foo(x)  y = vendor.Bar(a) }
    """)
    jobdir = inspect_job(tmp_path / "job", "model", model.SerializeToString())
    assert run("inspect", jobdir).returncode == order.EXIT_FAILED
    failure = failure_of(jobdir)
    assert (failure.class_, failure.stage) == (FailureClass.UNSUPPORTED, "inspect")
    assert "vendor::Bar" in failure.message
    assert "vendor::Foo" in failure.message


def test_a_dataset_is_inspected(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((12, 4), np.float32), labels=np.arange(12) % 3)
    jobdir = inspect_job(tmp_path / "job", "dataset", path.read_bytes())
    inspection.inspect(jobdir)
    found = DatasetInspection.model_validate_json((jobdir / order.INSPECTION).read_bytes())
    assert found.samples == 12
    assert found.histogram == (4, 4, 4)


def test_sigterm_ends_the_child(tmp_path):
    jobdir = job(tmp_path / "job")
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.engine", "compress", str(jobdir)],
        cwd=tmp_path,
        env=environment(jobdir),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "stage_started":
            break
    process.send_signal(signal.SIGTERM)
    process.stdout.close()
    assert process.wait(timeout=60) == -signal.SIGTERM


@pytest.mark.parametrize("arguments", [[], ["compress"], ["delete", "x"], ["compress", "a", "b"]])
def test_wrong_arguments_end_with_usage(arguments, capsys):
    assert child.main(arguments) == 2
    assert "usage: python -m workers.engine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "class_", "code"),
    [
        (BadData("x"), FailureClass.USER_INPUT, "bad_data"),
        (MemoryError(), FailureClass.RESOURCE, "out_of_memory"),
        (torch.OutOfMemoryError("CUDA"), FailureClass.RESOURCE, "out_of_memory"),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            ),
            FailureClass.RESOURCE,
            "out_of_memory",
        ),
        (OSError(errno.ENOSPC, "No space left"), FailureClass.RESOURCE, "disk_full"),
        (KeyError("x"), FailureClass.INTERNAL, "internal"),
        (RuntimeError("something else"), FailureClass.INTERNAL, "internal"),
    ],
    ids=lambda value: getattr(value, "__class__", type(value)).__name__,
)
def test_every_error_becomes_a_failure(error, class_, code):
    failure = child.explain(error, "steps/0")
    assert (failure.class_, failure.code, failure.stage) == (class_, code, "steps/0")
    assert Failure.model_validate_json(failure.model_dump_json(by_alias=True)) == failure


@pytest.mark.parametrize("error", [ValueError("sizes differ"), BadData("sizes differ")])
def test_a_failure_names_the_node_that_the_error_came_from(error):
    error.add_note("in Conv 'stem'")
    failure = child.explain(error, "steps/0")
    assert failure.message.endswith("sizes differ (in Conv 'stem')")
    assert child.explain(BadData("in Conv 'stem'"), "steps/0").message == "in Conv 'stem'"


def test_long_notes_do_not_make_a_message_too_long():
    error = ValueError("x" * 9000)
    error.add_note("n" * 9000)
    assert len(child.explain(error, "steps/0").message) < 4000
