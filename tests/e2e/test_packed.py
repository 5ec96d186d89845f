"""A packed file on its way through a real worker: coded by one process, unpacked by a second, compared, fetched, unpacked by the user."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from modelpress import packed
from modelpress.client import Client
from modelpress.spec import order
from modelpress.spec.constraint import Constraint, Goal, Metric
from modelpress.spec.job import Limits
from modelpress.spec.state import FailureClass
from tests import examples
from tests.conftest import Service
from tests.engine import jobs, nets
from workers import attempt, sandbox

pytestmark = pytest.mark.e2e

STEPS = [{"kind": "quantize.bits", "bits": 4}, {"kind": "code.entropy"}]
LIMITS = Limits(max_runtime_s=300)

SPOILING = """
import json, runpy, sys
task, jobdir = sys.argv[1:]
if task == "unpack":
    with open(jobdir + "/output/artifacts/model.mpk", "r+b") as file:
        file.seek(-40, 2)
        byte = file.read(1)[0]
        file.seek(-40, 2)
        file.write(bytes([byte ^ 1]))
try:
    runpy.run_module("workers.engine", run_name="__main__")
finally:
    print(task, json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_packed_file_of_a_worker_gives_the_model_that_was_measured(
    service: Service, tmp_path: Path
) -> None:
    model, _ = examples.digits(tmp_path)
    asked = Constraint(metric=Metric.CODED_BYTES, goal=Goal.MAX_RATIO, value=0.5)
    with Client(service.url, service.key) as client:
        job = client.submit(client.upload_model(model), {"steps": STEPS}, constraints=[asked])
        ended = client.wait(job, timeout_s=300)
        found = {path.name: path for path in client.fetch(job, tmp_path / "result")}
        report = client.report(job)
    assert ended.state == "succeeded"
    assert found.keys() == {order.ONNX, order.PACKED, "report.json"}
    assert report.verification is not None
    assert report.verification.unpacked_sha256 == digest(found[order.ONNX])
    assert report.verification.unpack_seconds is not None
    again = packed.unpack(found[order.PACKED], tmp_path / "again.onnx")
    assert again.sha256 == digest(tmp_path / "again.onnx") == digest(found[order.ONNX])
    size = report.stages[-1].size
    assert size.coded_bytes == found[order.PACKED].stat().st_size
    [judged] = report.constraints
    assert (judged.original, judged.final) == (model.stat().st_size, size.coded_bytes)
    assert judged.met


def test_spoiled_packed_file_fails_the_job(tmp_path: Path) -> None:
    """One bit is changed between the process that makes the file and the one that unpacks it, which has nothing but the decoder."""
    jobdir = jobs.make(tmp_path / "job", nets.plain_cnn(0), STEPS)
    ended = attempt.run(jobdir, limits=LIMITS, engine=(sys.executable, "-c", SPOILING))
    assert ended.how == "failed", ended.log_tail
    assert ended.sandbox == sandbox.level()
    assert ended.failure is not None
    assert (ended.failure.code, ended.failure.stage) == ("export_mismatch", "unpack")
    assert ended.failure.class_ is FailureClass.INTERNAL
    assert "model.mpk can't be unpacked" in ended.failure.message
    assert ended.artifacts == ()
    [line] = [line for line in ended.log_tail.splitlines() if line.startswith("unpack [")]
    loaded = json.loads(line.removeprefix("unpack "))
    assert "numpy" in loaded
    assert {"torch", "onnx", "onnx_ir", "onnxruntime"}.isdisjoint(loaded)
