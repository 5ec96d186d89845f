"""Patterns in which public architectures are exported, each once small."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from modelpress.spec.prune import PruneChannels
from tests.engine import jobs, nets
from tests.engine.nets import Builder
from workers.engine import formats, passes
from workers.engine.graph import execute
from workers.engine.passes import _weights

IMAGE = [("image", TensorProto.FLOAT, ["batch", 2, 8, 8])]


def bias_of_expanded_zeros() -> onnx.ModelProto:
    """A bias that is computed from the shape of the weight, as torch.onnx writes a convolution without one."""
    b = Builder(0)
    w = b.random("weight", 12, 2, 3, 3)
    zero = b.op("CastLike", b.constant("zero", np.array(0, np.float32)), "image")
    size = b.op("Shape", w, start=0, end=1)
    x = b.op("Conv", "image", w, b.op("Expand", zero, size), pads=[1] * 4)
    return b.model(IMAGE, b.pooled_classifier(b.op("Relu", x), 12))


def chunks_of_a_list() -> onnx.ModelProto:
    """torch.chunk and a sum of both halves beside them, as torch.onnx writes it: a list of parts, of which two are taken."""
    b = Builder(0)
    x = b.op("Relu", b.conv("image", 2, 12))
    parts = b.op("SplitToSequence", x, b.constant("sizes", np.array([6, 6])), axis=1, keepdims=1)
    first, second = (b.op("SequenceAt", parts, b.constant("at", np.array(i))) for i in (0, 1))
    x = b.op("Concat", b.op("Relu", b.conv(first, 6, 6)), second, axis=1)
    return b.model(IMAGE, b.pooled_classifier(x, 12))


def strided_view(stride: int = 12) -> onnx.ModelProto:
    """A pooled value that torch holds as a view: a lookup of all elements by their places, counted for each batch."""
    b = Builder(0)
    x = b.op("Relu", b.conv("image", 2, 12))
    x = b.op("ReduceMean", x, axes=[2, 3], keepdims=1)
    flat = b.op("Reshape", x, b.constant("all", np.array([-1])))
    rows = b.op("Squeeze", b.op("Shape", "image", start=0, end=1))
    zero, one = (b.constant("number", np.array(n)) for n in (0, 1))
    rows = b.op("Mul", b.op("Range", zero, rows, one), b.constant("stride", np.array(stride)))
    rows = b.op("Unsqueeze", rows, b.constant("axes", np.array([1, 2, 3])))
    places = b.op("Mul", b.op("Range", zero, b.constant("channels", np.array(12)), one), one)
    places = b.op("Unsqueeze", places, b.constant("axes", np.array([0, 2, 3])))
    x = b.op("Gather", flat, b.op("Add", rows, places), axis=0)
    x = b.op("Flatten", x)
    return b.model(IMAGE, b.op("Gemm", x, b.random("head", 12, nets.CLASSES)))


def heads_in_the_batch() -> onnx.ModelProto:
    """Channels are cut into heads that become part of the batch, whose size is left to be found: halo attention."""
    b = Builder(0)
    x = b.op("Relu", b.conv("image", 2, 12, k=1))
    x = b.op("Reshape", x, b.ints(-1, 4, 64), allowzero=1)
    x = b.op("Transpose", x, perm=[0, 2, 1])
    x = b.op("MatMul", x, b.random("mix", 4, 4))
    x = b.op("Reshape", b.op("Transpose", x, perm=[0, 2, 1]), b.ints(-1, 12, 8, 8), allowzero=1)
    return b.model(IMAGE, b.pooled_classifier(b.conv(x, 12, 12), 12))


def relative_positions() -> onnx.ModelProto:
    """Places that are added to the weights of attention come from a table, whose columns are no channels: halo attention.

    There are as many places as channels, and half as many columns.
    """
    b = Builder(0)
    x = b.op("AveragePool", b.conv("image", 2, 8), kernel_shape=[2, 4], strides=[2, 4])
    x = b.op("Transpose", b.op("Reshape", x, b.ints(0, 8, 8)), perm=[0, 2, 1])
    q, k, v = (b.op("MatMul", x, b.random(name, 8, 8)) for name in ("query", "key", "value"))
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1]))
    places = b.op("Tile", b.op("MatMul", k, b.random("table", 8, 4)), b.ints(1, 1, 2))
    scores = b.op("Add", scores, b.op("Transpose", places, perm=[0, 2, 1]))
    x = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    x = b.op("Flatten", b.op("ReduceMean", b.op("Relu", x), axes=[1], keepdims=1))
    return b.model(IMAGE, b.gemm(x, 8, nets.CLASSES))


def one_layer_for_two_streams() -> onnx.ModelProto:
    """CoaT: a feed-forward block is shared by several resolutions, its weights transposed at each use."""
    b = Builder(0)
    x = b.op("Relu", b.conv("image", 2, 12))
    first, second = b.random("first", 24, 12), b.random("second", 12, 24)
    sums = []
    for _ in range(2):
        y = b.op("ReduceMean", b.op("Relu", b.conv(x, 12, 12)), axes=[2, 3], keepdims=0)
        inner = b.op("MatMul", y, b.op("Transpose", first, perm=[1, 0]))
        sums.append(b.op("MatMul", b.op("Relu", inner), b.op("Transpose", second)))
    return b.model(IMAGE, b.gemm(b.op("Add", *sums), 12, nets.CLASSES))


def saved(model: onnx.ModelProto, tmp_path):
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def pruned(model: onnx.ModelProto, tmp_path):
    graph = formats.load(saved(model, tmp_path))
    return passes.apply(graph, PruneChannels(fraction=0.5), jobs.context_of(graph, tmp_path, None))


def test_a_bias_made_of_the_shape_of_its_weight_goes_with_it(tmp_path):
    model = bias_of_expanded_zeros()
    graph = pruned(model, tmp_path)
    assert graph.parameters()["weight_1"].shape[0] == 6
    assert execute.run(graph, nets.feeds(model, 3, seed=1))["logits"].shape == (3, nets.CLASSES)


@pytest.mark.parametrize("build", [chunks_of_a_list, strided_view])
def test_channels_pass_what_exporters_express_roundabout(build, tmp_path):
    model = build()
    feeds = nets.feeds(model, 3, seed=1)
    before = formats.load(saved(model, tmp_path))
    graph = formats.load(saved(model, tmp_path))
    _weights.turn(graph)
    assert not {"SplitToSequence", "SequenceAt", "Gather"} & {node.op_type for node in graph.nodes}
    np.testing.assert_array_equal(
        execute.run(graph, feeds)["logits"], execute.run(before, feeds)["logits"]
    )
    first = next(node for node in graph.nodes if node.op_type == "Conv").inputs[1].name
    smaller = pruned(model, tmp_path)
    assert smaller.parameters()[first].shape[0] == 6
    assert execute.run(smaller, feeds)["logits"].shape == (3, nets.CLASSES)


def test_a_layer_that_is_used_twice_loses_channels_on_both_axes(tmp_path):
    model = one_layer_for_two_streams()
    graph = pruned(model, tmp_path)
    first, second = (w for name, w in graph.parameters().items() if name[:5] in ("first", "secon"))
    assert (first.shape, second.shape) == ((6, 12), (12, 6))
    assert execute.run(graph, nets.feeds(model, 3, seed=1))["logits"].shape == (3, nets.CLASSES)


def test_turning_a_weight_of_two_readers_changes_no_answer(tmp_path):
    model = one_layer_for_two_streams()
    feeds = nets.feeds(model, 3, seed=1)
    graph = formats.load(saved(model, tmp_path))
    before = execute.run(graph, feeds)["logits"]
    _weights.turn(graph)
    assert "Transpose" not in {node.op_type for node in graph.nodes}
    np.testing.assert_allclose(execute.run(graph, feeds)["logits"], before, atol=1e-5)


def test_a_view_that_repeats_elements_stays_a_lookup(tmp_path):
    graph = formats.load(saved(strided_view(stride=6), tmp_path))
    _weights.turn(graph)
    assert "Gather" in {node.op_type for node in graph.nodes}


def test_a_size_that_is_to_be_found_follows_the_batch(tmp_path):
    model = heads_in_the_batch()
    graph = pruned(model, tmp_path)
    for batch in (1, 3):
        found = execute.run(graph, nets.feeds(model, batch, seed=1))
        assert found["logits"].shape == (batch, nets.CLASSES)


def test_of_channels_and_places_the_channels_are_followed(tmp_path):
    model = relative_positions()
    graph = pruned(model, tmp_path)
    (value,) = (w for name, w in graph.parameters().items() if name.startswith("value"))
    assert value.shape == (4, 4)
    found = execute.run(graph, nets.feeds(model, 3, seed=1))
    assert found["logits"].shape == (3, nets.CLASSES)
