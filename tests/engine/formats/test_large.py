"""Models over protobuf's limit of 2 GiB, with the limit lowered: their weights leave in a file beside them."""

from __future__ import annotations

import onnx
import onnxruntime as ort
import pytest

from modelpress.spec import order
from modelpress.spec.report import Report
from tests.engine import jobs, nets
from workers.engine import gauge, pipeline, verification
from workers.engine.formats import onnx as onnx_format


@pytest.fixture(autouse=True)
def _low_limit(monkeypatch):
    monkeypatch.setitem(onnx_format.save.__kwdefaults__, "inline_bytes", 1000)
    monkeypatch.setattr(gauge, "LATENCY_BUDGET_S", 0.02)


def test_a_job_with_a_large_model_ends_with_two_files_that_belong_together(tmp_path):
    model = nets.plain_cnn(0)
    steps = [{"kind": "prune.magnitude", "sparsity": 0.5}, {"kind": "quantize.int8"}]
    jobdir = jobs.make(tmp_path / "job", model, steps, train=jobs.arrays_of(model, 64))
    pipeline.compress(jobdir)
    verification.verify_export(jobdir)
    report = Report.model_validate_json((jobdir / order.REPORT).read_bytes())
    assert report.verification.ok
    assert [a.name for a in report.artifacts] == ["model.onnx", "model.onnx.data"]
    measured = report.stages[-1].size.file_bytes
    longer_name = len("step-1.onnx.data") - len("model.onnx.data")
    assert 0 <= measured - sum(a.size_bytes for a in report.artifacts) <= 8 * longer_name
    path = jobdir / order.ARTIFACTS / "model.onnx"
    loaded = onnx.load(path, load_external_data=False)
    assert any(map(onnx.external_data_helper.uses_external_data, loaded.graph.initializer))
    assert path.stat().st_size < measured / 2
    assert ort.InferenceSession(path).run(None, nets.feeds(model, 7))[0].shape == (7, 10)
