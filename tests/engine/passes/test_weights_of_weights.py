"""Weights that are made of weights in the graph: computed once, tied ones kept tied, before channels go."""

from __future__ import annotations

import numpy as np

from tests.engine import nets
from tests.engine.graph.channels import corner_nets
from tests.engine.nets import Builder
from tests.engine.passes.channel_pruning import answers, load, prune
from workers.engine.graph import shapes
from workers.engine.passes import _settle, _weights


def test_filters_that_are_computed_from_weights_are_computed_once(tmp_path):
    model, graph = load(corner_nets.standardized_weights(), tmp_path)
    wanted = answers(graph, model, tmp_path)
    assert _settle.weights(graph, shapes.example_shapes(graph)) == ["Conv_18"]
    np.testing.assert_allclose(answers(graph, model, tmp_path), wanted, atol=1e-5)
    pruned, ctx = prune(corner_nets.standardized_weights(), tmp_path, fraction=0.5)
    assert sorted(w.shape for w in pruned.parameters().values() if w.ndim == 4) == [
        (3, 2, 3, 3),
        (4, 3, 3, 3),
    ]
    assert any("computed once" in note for note in ctx.coverage.notes)


def test_gates_that_are_reordered_at_each_run_are_reordered_once(tmp_path):
    model, graph = load(corner_nets.lstm_of_reordered_gates(), tmp_path)
    wanted = answers(graph, model, tmp_path)
    assert len(_settle.weights(graph, shapes.example_shapes(graph))) == 1
    np.testing.assert_allclose(answers(graph, model, tmp_path), wanted, atol=1e-5)
    pruned, _ = prune(corner_nets.lstm_of_reordered_gates(), tmp_path, fraction=0.5)
    assert sorted(w.shape for w in pruned.parameters().values() if w.ndim == 3) == [
        (1, 12, 3),
        (1, 12, 8),
    ]


def test_weights_that_are_tied_stay_tied(tmp_path):
    """Read as they are and standardized: one weight, whatever is made of it."""
    b = Builder(0)
    w = b.random("weight", 8, 8)
    other = b.op("Mul", w, b.random("gain", 8, 1, fan_in=1))
    x = b.op(
        "Relu", b.op("MatMul", b.op("Flatten", b.op("GlobalAveragePool", b.conv("image", 2, 8))), w)
    )
    _, graph = load(
        b.model(
            [("image", 1, ("batch", 2, 8, 8))], b.gemm(b.op("MatMul", x, other), 8, nets.CLASSES)
        ),
        tmp_path,
    )
    assert _settle.weights(graph, shapes.example_shapes(graph)) == []


def test_a_gemm_reads_a_turned_weight_as_it_lies(tmp_path):
    """What torch exports of an autoencoder with tied weights."""
    b = Builder(0)
    w = b.random("weight", 8, 6)
    x = b.op("Flatten", b.op("GlobalAveragePool", b.conv("image", 2, 6)))
    hidden = b.op("Relu", b.op("Gemm", x, w, transB=1))
    back = b.op("Relu", b.op("Gemm", hidden, b.op("Transpose", w, perm=[1, 0]), transB=1))
    net = b.model([("image", 1, ("batch", 2, 8, 8))], b.gemm(back, 6, nets.CLASSES))
    model, graph = load(net, tmp_path)
    wanted = answers(graph, model, tmp_path)
    _weights.turn(graph)
    np.testing.assert_allclose(answers(graph, model, tmp_path), wanted, atol=1e-6)
    pruned, _ = prune(net, tmp_path, fraction=0.5)
    assert pruned.parameters()[w].shape == (4, 3)


def test_a_product_of_two_factors_stays_one(tmp_path):
    b = Builder(0)
    w = b.op("MatMul", b.random("down", 16, 2), b.random("up", 2, 16))
    x = b.op("MatMul", b.op("Flatten", b.op("GlobalAveragePool", b.conv("image", 2, 16))), w)
    _, graph = load(
        b.model([("image", 1, ("batch", 2, 8, 8))], b.gemm(x, 16, nets.CLASSES)), tmp_path
    )
    assert _settle.weights(graph, shapes.example_shapes(graph)) == []
    assert [node.op_type for node in graph.nodes].count("MatMul") == 2
