"""The other models of a job: opened late, and the initial one made to fit the names of the source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from modelpress.spec import order
from tests.engine import jobs, nets
from workers.engine import formats, gauge, others, pipeline
from workers.engine.errors import BadData, BadModel
from workers.engine.graph import Graph


def graph_of(model: onnx.ModelProto, path: Path) -> Graph:
    onnx.save(model, path)
    return formats.load(path)


@pytest.fixture
def source(tmp_path):
    return graph_of(nets.residual_cnn(0), tmp_path / "source.onnx")


def test_initial_model_has_the_names_of_the_source_and_its_own_weights(source, tmp_path):
    found = graph_of(nets.residual_cnn(1), tmp_path / "initial.onnx")
    result = others.initial(source, found)
    assert list(result.initializers) == list(source.initializers)
    assert all(np.array_equal(result.weight(n), found.weight(n)) for n in source.initializers)
    assert not np.array_equal(result.weight("weight_1"), source.weight("weight_1"))


@pytest.mark.parametrize("name", [*nets.NETS])
def test_initial_model_of_any_network_is_taken(name, tmp_path):
    source, found = (graph_of(nets.NETS[name](seed), tmp_path / f"{seed}.onnx") for seed in (0, 1))
    result = others.initial(source, found)
    assert all(np.array_equal(result.weight(n), found.weight(n)) for n in source.initializers)


TRAINED = """net (float[n, 4] x) => (float[n, 4] y) <float[4, 4] w, float[4, 4] v, float[4] b, float[4] c> {
    h = Gemm(x, w, b)  y = Gemm(h, v, c) }"""
UNTRAINED = """net (float[n, 4] x) => (float[n, 4] y) <float[4, 4] u, float[4, 4] t, float[4] zero> {
    h = Gemm(x, u, zero)  y = Gemm(h, t, zero) }"""


def test_weights_that_an_exporter_stored_once_or_named_otherwise_are_found(tmp_path):
    source = graph_of(jobs.text(TRAINED), tmp_path / "source.onnx")
    found = graph_of(jobs.text(UNTRAINED), tmp_path / "initial.onnx")
    result = others.initial(source, found)
    for name, other in {"w": "u", "v": "t", "b": "zero", "c": "zero"}.items():
        np.testing.assert_array_equal(result.weight(name), found.weight(other))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TRAINED.replace("h = Gemm(x, w, b)", "g = Gemm(x, w, b)  h = Relu(g)"), "3 nodes where"),
        (TRAINED.replace("Gemm(x, w, b)", "Sub(x, b)"), "node 0 of it is Sub"),
        (TRAINED.replace("[4] b", "[1] b"), r"'b' is FLOAT \[4\], there FLOAT \[1\]"),
        (TRAINED.replace("Gemm(h, v, c)", "Gemm(h, v, h)"), "weights as other inputs"),
    ],
)
def test_another_network_is_no_initial_model(text, reason, tmp_path):
    source = graph_of(jobs.text(TRAINED), tmp_path / "source.onnx")
    found = graph_of(jobs.text(text), tmp_path / "initial.onnx")
    with pytest.raises(BadModel, match=reason):
        others.initial(source, found)


def test_a_model_is_opened_once_and_only_when_asked_for(source, tmp_path):
    onnx.save(nets.residual_cnn(1), tmp_path / "initial.onnx")
    models = others.Models(
        {"initial": tmp_path / "initial.onnx", "teacher": tmp_path / "absent.onnx"}, source
    )
    assert set(models) == {"initial", "teacher"}
    assert models["initial"] is models["initial"]
    with pytest.raises(FileNotFoundError):
        _ = models["teacher"]


TICKETS = {"kind": "prune.lottery", "rounds": 2, "training": {"epochs": 1}}
MOVED = {"kind": "prune.magnitude", "sparsity": 0.5, "criterion": "movement"}


def job(folder: Path, step: dict, **options) -> Path:
    model = nets.mlp(0)
    return jobs.make(folder, model, [step], train=jobs.arrays_of(model, 100), **options)


def test_initial_model_of_a_job_reaches_its_step(tmp_path, monkeypatch):
    monkeypatch.setattr(gauge, "LATENCY_BUDGET_S", 0.05)
    file = order.FileRef(path="input/model-initial.onnx")
    jobdir = job(tmp_path / "job", TICKETS, models={"initial": file})
    onnx.save(nets.mlp(1), jobdir / file.path)
    baseline, stage = pipeline.compress(jobdir).stages
    ticket, *others_ = stage.curves
    assert [curve.name for curve in others_] == [control.name for control in stage.controls]
    assert ticket.points[-1].mean == baseline.quality.accuracy
    assert ticket.points[0].mean == stage.quality.accuracy


def test_job_without_the_model_that_its_step_needs_is_refused(tmp_path):
    with pytest.raises(BadData, match="needs a model in the role 'initial'"):
        pipeline.compress(job(tmp_path / "job", MOVED))
