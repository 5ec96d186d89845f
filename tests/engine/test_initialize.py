"""Networks with new weights."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from tests.engine import nets
from workers.engine import initialize
from workers.engine.formats import normal
from workers.engine.graph import Graph, execute, match


def graph_of(model: onnx.ModelProto) -> Graph:
    loaded = ir.from_proto(model)
    normal.normalise(loaded)
    return Graph(loaded)


def fresh(graph: Graph, seed: int = 7) -> Graph:
    return initialize.fresh(graph, np.random.default_rng(seed))


def one_layer(kind: str, weight: tuple[int, ...], *, relu: bool = False, **attributes) -> Graph:
    b = nets.Builder(0)
    w = b.random("weight", *weight)
    x = b.op(kind, "x", w, **attributes)
    x = b.op("Relu", x) if relu else x
    rank = len(weight) if kind.startswith("Conv") else 2
    shape = ["batch", *(["c", "h", "w"] if rank == 4 else ["d"])]
    model = b.model([("x", TensorProto.FLOAT, shape)], x, ["n", *("abc"[: rank - 1])])
    return graph_of(model)


def std_of_only_weight(graph: Graph) -> float:
    [layer] = match.layers(graph)
    return float(graph.weight(layer.weight).std())


@pytest.mark.parametrize("name", nets.NETS)
def test_every_trained_weight_is_new_and_the_rest_stays(name):
    graph = graph_of(nets.NETS[name](0))
    result = fresh(graph)

    for weight, old in graph.parameters().items():
        new = result.weight(weight)
        assert new.shape == old.shape
        assert new.dtype == old.dtype
        assert weight.startswith("offset") or not np.array_equal(new, old)
    constants = set(graph.initializers) - set(graph.parameters())
    kept = [c for c in constants if not c.startswith(("mean", "var"))]
    assert all(np.array_equal(graph.weight(c), result.weight(c)) for c in kept)


@pytest.mark.parametrize("name", nets.NETS)
def test_signals_neither_vanish_nor_explode(name):
    model = nets.NETS[name](0)
    result = fresh(graph_of(model))
    [logits] = execute.run(result, nets.feeds(model, batch=64)).values()
    assert 1e-3 < logits.std() < 30


def test_same_seed_same_weights_and_another_seed_others():
    graph = graph_of(nets.plain_cnn())
    first, again, other = fresh(graph, 1), fresh(graph, 1), fresh(graph, 2)
    for layer in match.layers(graph):
        assert np.array_equal(first.weight(layer.weight), again.weight(layer.weight))
        assert not np.array_equal(first.weight(layer.weight), other.weight(layer.weight))


@pytest.mark.parametrize(
    ("kind", "weight", "attributes", "fan_in", "fan_out"),
    [
        ("Conv", (64, 32, 3, 3), {}, 32 * 9, 64 * 9),
        ("Conv", (64, 8, 3, 3), {"group": 8}, 8 * 9, 8 * 9),
        ("ConvTranspose", (64, 32, 3, 3), {}, 64 * 9, 32 * 9),
        ("ConvTranspose", (64, 8, 3, 3), {"group": 4}, 16 * 9, 8 * 9),
        ("Gemm", (300, 100), {"transB": 1}, 100, 300),
        ("Gemm", (300, 100), {}, 300, 100),
        ("MatMul", (300, 100), {}, 300, 100),
    ],
)
@pytest.mark.parametrize("relu", [False, True])
def test_variance_follows_the_fans(kind, weight, attributes, fan_in, fan_out, relu):
    graph = one_layer(kind, weight, relu=relu, **attributes)
    wanted = 2 / fan_in if relu else 2 / (fan_in + fan_out)
    assert std_of_only_weight(fresh(graph)) == pytest.approx(math.sqrt(wanted), rel=0.05)


def test_normalization_is_untrained():
    b = nets.Builder(0)
    x = b.batch_norm(b.conv("image", 1, 8, bias=True), 8)
    result = fresh(graph_of(b.model(nets._image(), b.pooled_classifier(x, 8))))
    [node] = [node for node in result.nodes if node.op_type == "BatchNormalization"]
    values = [float(np.unique(result.weight(v.name or ""))[0]) for v in node.inputs[1:] if v]
    assert values == [1, 0, 0, 1]
    assert all(len(np.unique(result.weight(v.name or ""))) == 1 for v in node.inputs[1:] if v)


def test_biases_are_zero():
    graph = graph_of(nets.matmul_mlp())
    result = fresh(graph)
    for layer in match.layers(result):
        assert layer.bias is not None
        assert not result.weight(layer.bias).any()


def test_scaling_of_the_input_stays():
    graph = graph_of(nets.matmul_mlp())
    [offset] = [name for name in graph.initializers if name.startswith("offset")]
    assert np.array_equal(fresh(graph).weight(offset), graph.weight(offset))


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("said", [True, False])
def test_recurrent_cells_are_uniform_within_their_bound(kind, gates, said):
    b = nets.Builder(0)
    w, r = b.random("w", 1, gates * 64, 8), b.random("r", 1, gates * 64, 64)
    bias = b.random("b", 1, gates * 128)
    given = {"hidden_size": 64} if said else {}
    x = b.op(kind, "x", w, r, bias, **given)
    model = b.model([("x", TensorProto.FLOAT, [5, "batch", 8])], x, [5, 1, "batch", 64])
    result = fresh(graph_of(model))
    for name in (w, r, bias):
        drawn = result.weight(name)
        assert np.abs(drawn).max() <= 1 / 8
        assert drawn.std() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.15)


def test_a_weight_that_is_first_asked_for_its_shape_is_still_a_weight():
    b = nets.Builder(0)
    w = b.random("weight", 300, 100)
    size = b.op("Size", w)
    moved = b.op("Transpose", w, perm=[1, 0])
    x = b.op("Div", b.op("MatMul", "x", moved), b.op("Cast", size, to=TensorProto.FLOAT))
    model = b.model([("x", TensorProto.FLOAT, ["batch", 100])], x, ["batch", 300])
    drawn = fresh(graph_of(model)).weight(w)
    assert drawn.std() == pytest.approx(math.sqrt(2 / 400), rel=0.05)


@pytest.mark.parametrize("kind", ["LayerNormalization", "InstanceNormalization"])
def test_every_normalization_begins_as_the_identity(kind):
    b = nets.Builder(0)
    width = 16 if kind == "LayerNormalization" else 8
    scale, shift = b.random("scale", width), b.random("shift", width)
    x = b.op(kind, "image", scale, shift)
    model = b.model([("image", TensorProto.FLOAT, ["batch", 8, 16, 16])], x, ["n", 8, 16, 16])
    result = fresh(graph_of(model))
    assert (result.weight(scale) == 1).all()
    assert (result.weight(shift) == 0).all()


def test_a_tied_weight_is_drawn_once():
    b = nets.Builder(0)
    w = b.random("weight", 32, 32)
    x = b.op("MatMul", b.op("Relu", b.op("MatMul", "x", w)), w)
    model = b.model([("x", TensorProto.FLOAT, ["batch", 32])], x, ["batch", 32])
    result = fresh(graph_of(model))
    assert len(result.parameters()) == 1


def test_an_embedding_is_narrow():
    graph = graph_of(nets.text_transformer())
    [table] = [name for name in graph.initializers if name.startswith("embedding")]
    assert fresh(graph).weight(table).std() == pytest.approx(0.02, rel=0.1)


def test_the_source_is_left_alone():
    graph = graph_of(nets.plain_cnn())
    before = {name: graph.weight(name).copy() for name in graph.initializers}
    fresh(graph)
    assert all(np.array_equal(before[name], graph.weight(name)) for name in before)
