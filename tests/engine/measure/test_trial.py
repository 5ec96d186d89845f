"""Networks measured beside a stage."""

from __future__ import annotations

import numpy as np

from tests.engine import jobs
from workers.engine import initialize
from workers.engine.measure import trial


def test_the_uploaded_model_agrees_with_itself(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    found = trial.measure(graph, ctx)
    assert found.agreement == 1.0
    assert found.samples == 48


def test_another_network_is_compared_with_the_uploaded_one(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    other = initialize.fresh(graph, np.random.default_rng(7))
    first, again = trial.measure(other, ctx), trial.measure(other, ctx)
    assert first == again
    assert first.agreement is not None
    assert first.agreement < 1.0
    assert first.max_abs_difference > 0.1


def test_outputs_that_the_job_measured_are_what_it_is_compared_with(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    ctx.outputs["logits"] = np.zeros((48, 10), np.float32)
    assert trial.measure(graph, ctx).max_abs_difference > 0.1
    assert not (tmp_path / "source.onnx").exists()
    assert not (tmp_path / "trial.onnx").exists()
