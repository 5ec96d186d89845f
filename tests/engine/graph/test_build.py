"""Layers built straight into a graph, which is one that ONNX Runtime runs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from workers.engine import formats
from workers.engine.formats import normal
from workers.engine.graph import build, execute, shapes, verify

IMAGE = {"image": ("batch", 3, 13, 11)}


def builder(inputs=IMAGE, seed=0):
    graph = build.empty(inputs)
    return build.Builder(graph, np.random.default_rng(seed)), graph.inputs[0]


def everything(seed=0):
    """Each kind of layer once, on a map of odd size."""
    b, x = builder(seed=seed)
    x = b.relu(b.batch_norm(b.conv(x, 8, 3, stride=2, bias=True, name="stem")))
    x = b.relu6(b.depthwise(x, 5))
    y = b.max_pool(b.conv(x, 6, (3, 1), groups=2, dilation=2))
    z = b.average_pool(b.conv(x, 6, 2, pad=(0, 0, 1, 1)))
    with b.scope("joined"):
        x = b.shuffle(b.concat(y, z), 3)
        x = b.mul(x, b.hard_sigmoid(b.global_average_pool(x)))
        x = b.add(b.take(x, 0, 7), b.take(x, 5, 12))
        x = b.flatten(b.global_average_pool(b.dropout(x, 0.5)))
    return b.answer(b.linear(x, 4), "logits", ("batch", 4))


def test_what_is_built_is_a_graph_that_onnx_runtime_runs(tmp_path):
    graph = everything()
    verify.verify(graph)
    x = np.random.default_rng(1).normal(size=(2, 3, 13, 11)).astype(np.float32)
    formats.save(graph, tmp_path / "net.onnx")
    [got] = ort.InferenceSession(tmp_path / "net.onnx").run(None, {"image": x})
    np.testing.assert_allclose(execute.run(graph, {"image": x})["logits"], got, atol=1e-5)
    assert got.shape == (2, 4)


def test_names_say_where_a_layer_is_and_are_unique():
    graph = everything()
    names = {value.name for node in graph.nodes for value in node.outputs}
    assert {"joined/shuffle", "joined/slice", "joined/slice_1"} <= names
    assert "stem.weight" in graph.initializers


def test_a_shuffle_interleaves_groups():
    b, x = builder({"x": ("batch", 6, 1, 1)})
    graph = b.answer(b.shuffle(x, 2), "y", ("batch", 6, 1, 1))
    fed = np.arange(6, dtype=np.float32).reshape(1, 6, 1, 1)
    assert execute.run(graph, {"x": fed})["y"].ravel().tolist() == [0, 3, 1, 4, 2, 5]


def test_padding_keeps_the_size_where_nothing_else_is_said():
    b, x = builder()
    y = b.conv(x, 4, (3, 5), dilation=(2, 1))
    graph = b.answer(y, "y", ("batch", 4, 13, 11))
    assert shapes.infer(graph, {"image": (1, 3, 13, 11)})["y"] == (1, 4, 13, 11)


def test_weights_have_the_variance_of_he():
    b, x = builder({"x": ("batch", 40, 9, 9)})
    b.conv(x, 80, 3, groups=4)
    assert b.graph.weight("conv.weight").var() == pytest.approx(2 / 90, rel=0.05)


def test_same_numbers_for_the_same_seed_only():
    first, again, other = (everything(seed).weight("stem.weight") for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_layers_are_put_before_a_node():
    b, x = builder({"x": ("batch", 4, 5, 5)})
    last = b.relu(x)
    graph = b.answer(last, "y", ("batch", 4, 5, 5))
    inner = build.Builder(graph, np.random.default_rng(0), before=last.producer())
    last.producer().replace_input_with(0, inner.conv(x, 4, 3))
    verify.verify(graph)
    assert [node.op_type for node in graph.nodes] == ["Conv", "Relu"]


def test_channels_that_no_shape_tells_are_asked_for():
    b, _ = builder()
    with pytest.raises(KeyError, match="channels of 'v' are not known"):
        b.conv(ir.Value(name="v"), 4)


def test_groups_that_cut_no_channels_evenly_are_refused():
    b, x = builder()
    with pytest.raises(ValueError, match="3 channels to 4 can't be cut into 2 groups"):
        b.conv(x, 4, groups=2)


def test_graphs_are_built_in_the_opset_that_loaded_ones_have():
    assert (build.OPSET, build.IR_VERSION) == (normal.OPSET, normal.IR_VERSION)
