from __future__ import annotations

import pytest

from tests.engine import jobs, nets
from workers.engine.gauge import Gauge
from workers.engine.measure import bound


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The baseline of a tiny net, with its graph and the shapes of its inputs."""
    folder = tmp_path_factory.mktemp("bound")
    graph = jobs.load("plain_cnn", folder)[1]
    gauge = Gauge.open(
        folder / "plain_cnn.onnx", graph, None, threads=1, seed=0, work=folder / "work"
    )
    return gauge.baseline(graph)[1], graph, gauge.shapes


@pytest.fixture
def stage(measured):
    """The same, with a graph that may be changed."""
    before, graph, shapes = measured
    return before, graph.clone(), shapes


def changed(stage, macs, ratio):
    """The stage with so many multiply-accumulates, and so much of the original's time."""
    cost = stage.cost.model_copy(update={"macs": macs})
    latency = stage.latency.model_copy(update={"ratio": ratio})
    return stage.model_copy(update={"cost": cost, "latency": latency})


def test_time_that_falls_less_than_computation_is_explained(stage):
    before, graph, shapes = stage
    after = changed(before, before.cost.macs // 4, 0.5)
    [note] = bound.explain(before, after, graph, shapes)
    assert "x4.00 fewer multiply-accumulates, but the model is x2.00 faster" in note
    assert f"starts {len(graph.nodes)} operators" in note
    assert "MB of weights and values" in note
    assert "no multiple" not in note


def test_channels_beside_the_blocks_of_the_runtime_are_named(stage):
    before, graph, shapes = stage
    after = changed(before, before.cost.macs // 4, 0.5)
    graph.set_weight("weight_1", graph.weight("weight_1")[:7])
    for name in ("scale_3", "bias_6", "mean_4", "var_5"):
        graph.set_weight(name, graph.weight(name)[:7])
    graph.set_weight("weight_10", graph.weight("weight_10")[:, :7])
    [note] = bound.explain(before, after, graph, shapes)
    assert "1 of 2 convolutions have channels that are no multiple of 8" in note


@pytest.mark.parametrize(("macs", "ratio"), [(4, 0.25), (4, 0.3), (1, 1.0), (1, 1.5)])
def test_where_time_keeps_up_or_nothing_was_saved_there_is_no_note(stage, macs, ratio):
    before, graph, shapes = stage
    after = changed(before, before.cost.macs // macs, ratio)
    assert not list(bound.explain(before, after, graph, shapes))


def test_a_byte_is_counted_for_every_weight_and_value(stage):
    _, graph, shapes = stage
    nodes = {"conv": 8 * 64, "pool": 8 * 16, "second": 16 * 16, "gemm": 32, "last": nets.CLASSES}
    values = 64 + 3 * nodes["conv"] + nodes["pool"] + 3 * nodes["second"] + nodes["second"]
    values += 2 * nodes["gemm"] + 2 * nodes["last"]
    weights = sum(graph.weight(name).size for name in graph.initializers)
    assert bound._bytes(graph, shapes) == 4 * (values + weights)
