"""Zeroing channels in the whole network gives what the sliced network gives."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from tests.engine import nets
from tests.engine.nets import Builder
from workers.engine import formats
from workers.engine.graph import Graph, channels, execute, shapes
from workers.engine.graph.channels.plan import Plan, Removed

IMAGE = [("image", TensorProto.FLOAT, ["batch", 2, 8, 8])]
TOKENS = [("x", TensorProto.FLOAT, ["batch", 5, 8])]


def joined() -> onnx.ModelProto:
    b = Builder(0)
    x, y = b.conv("image", 2, 6), b.conv("image", 2, 4)
    x = b.op("Relu", b.op("Concat", x, y, axis=1))
    return b.model(IMAGE, b.pooled_classifier(b.conv(x, 10, 8), 8))


def flattened() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Flatten", b.op("Relu", b.conv("image", 2, 4)), axis=1)
    return b.model(IMAGE, b.gemm(x, 256, nets.CLASSES))


def grouped() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Relu", b.conv(b.conv("image", 2, 8), 8, 12, group=4))
    return b.model(IMAGE, b.pooled_classifier(b.conv(x, 12, 12, group=2), 12))


def transposed() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Relu", b.conv("image", 2, 6))
    x = b.op("ConvTranspose", x, b.random("weight", 6, 4, 2, 2), b.bias(4), strides=[2, 2])
    x = b.op("ConvTranspose", x, b.random("weight", 4, 1, 2, 2), b.bias(4), group=4)
    return b.model(IMAGE, b.pooled_classifier(x, 4))


def pixel_shuffled() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("DepthToSpace", b.conv("image", 2, 48), blocksize=2, mode="CRD")
    return b.model(IMAGE, b.pooled_classifier(b.op("Relu", x), 12))


def shared() -> onnx.ModelProto:
    b = Builder(0)
    x = b.conv("image", 2, 6)
    w = b.random("weight", 6, 6, 3, 3)
    for _ in range(2):
        x = b.op("Relu", b.op("Conv", x, w, pads=[1] * 4))
    return b.model(IMAGE, b.pooled_classifier(x, 6))


def padded() -> onnx.ModelProto:
    """A shortcut that is filled up with channels of zeros."""
    b = Builder(0)
    x = b.op("Pad", b.conv("image", 2, 4), b.ints(0, 1, 0, 0, 0, 3, 0, 0))
    return b.model(IMAGE, b.pooled_classifier(b.op("Add", x, b.conv("image", 2, 8)), 8))


def gated() -> onnx.ModelProto:
    b = Builder(0)
    x = b.conv("image", 2, 12)
    b.op("Split", x, b.ints(6, 6), outputs=2, axis=1)
    value, gate = b.outputs_of_last()
    x = b.op("Mul", value, b.op("Sigmoid", gate))
    return b.model(IMAGE, b.pooled_classifier(x, 6))


def sliced() -> onnx.ModelProto:
    b = Builder(0)
    x = b.conv("image", 2, 12)
    first = b.op("Slice", x, b.ints(0), b.ints(5), b.ints(1))
    rest = b.op("Slice", x, b.ints(5), b.ints(2**40), b.ints(1))
    x = b.op("Concat", b.op("Relu", rest), first, axis=1)
    return b.model(IMAGE, b.pooled_classifier(x, 12))


def gathered() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Gather", b.conv("image", 2, 8), b.ints(7, 1, 2, 0, 5), axis=1)
    return b.model(IMAGE, b.pooled_classifier(x, 5))


def attention() -> onnx.ModelProto:
    b = Builder(0)
    x = nets._attention(b, b.dense("x", 8, 16), 16, 4)
    return b.model(TOKENS, b.dense(b.op("ReduceMean", x, axes=[1], keepdims=0), 16, nets.CLASSES))


def layer_normed() -> onnx.ModelProto:
    """Hidden channels beside a LayerNormalization whose own axis stays."""
    b = Builder(0)
    x = b.op("Add", "x", b.dense(b.op("Relu", b.dense("x", 8, 16)), 16, 8))
    x = nets._layer_norm(b, x, 8)
    x = b.op("Relu", b.dense(x, 8, 12))
    return b.model(TOKENS, b.dense(b.op("ReduceMean", x, axes=[1], keepdims=0), 12, nets.CLASSES))


def recurrent(kind: str, gates: int) -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Transpose", b.dense("x", 8, 6), perm=[1, 0, 2])
    weights = [b.random("weight", 2, gates * 10, n) for n in (6, 10)]
    bias = b.constant("bias", b.rng.normal(0, 0.1, (2, 2 * gates * 10)).astype(np.float32))
    y = b.op(kind, x, *weights, bias, hidden_size=10, direction="bidirectional")
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.ints(0, 0, 20))
    last = b.op("Gather", y, b.constant("last", np.array(-1, np.int64)), axis=0)
    return b.model(TOKENS, b.gemm(last, 20, nets.CLASSES))


SMALL = {
    **{
        build.__name__: build
        for build in (
            joined,
            flattened,
            grouped,
            transposed,
            pixel_shuffled,
            shared,
            padded,
            gated,
            sliced,
            gathered,
            attention,
            layer_normed,
        )
    },
    "lstm": lambda: recurrent("LSTM", 4),
    "gru": lambda: recurrent("GRU", 3),
    "rnn": lambda: recurrent("RNN", 1),
    **{
        name: nets.NETS[name]
        for name in nets.NETS
        if name not in ("vision_transformer", "text_transformer")
    },
}


def loaded(model: onnx.ModelProto, tmp_path) -> Graph:
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    return formats.load(path)


def half(plan: Plan, seed: int = 0) -> Removed:
    """Half of each family, drawn."""
    rng = np.random.default_rng(seed)
    removed = np.zeros(plan.classes.count, dtype=np.bool_)
    for family in plan.families:
        removed[rng.choice(family.classes, len(family.classes) // 2, replace=False)] = True
    return plan.spare(removed, np.ones(plan.classes.count), 1)


def zero(graph: Graph, plan: Plan, removed: Removed) -> None:
    for (name, axis), touched in plan.axes.items():
        kept = ~removed[touched]
        if not kept.all():
            weight = graph.weight(name)
            shape = [-1 if a == axis else 1 for a in range(weight.ndim)]
            graph.set_weight(name, (weight * kept.reshape(shape)).astype(weight.dtype))


@pytest.mark.parametrize("name", SMALL)
def test_zeroed_channels_equal_removed_channels(name, tmp_path):
    model = SMALL[name]()
    graph = loaded(model, tmp_path)
    sizes = shapes.example_shapes(graph, 1)
    plan = channels.plan.make(graph, sizes)
    removed = half(plan)
    assert removed.any()
    whole = graph.clone()
    zero(whole, plan, removed)
    channels.surgery.remove(graph, plan, removed, sizes)
    feeds = nets.feeds(model, 3, seed=1)
    sliced = execute.run(graph, feeds)["logits"]
    np.testing.assert_allclose(sliced, execute.run(whole, feeds)["logits"], atol=1e-5)
    formats.save(graph, tmp_path / "sliced.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "sliced.onnx")
    np.testing.assert_allclose(session.run(None, feeds)[0], sliced, atol=1e-4)


@pytest.mark.parametrize("name", nets.NETS)
def test_cost_is_foretold(name, tmp_path):
    graph = loaded(nets.NETS[name](0), tmp_path)
    sizes = shapes.example_shapes(graph, 1)
    plan = channels.plan.make(graph, sizes)
    removed = half(plan)
    cost = channels.surgery.cost(graph, plan, removed, sizes)
    channels.surgery.remove(graph, plan, removed, sizes)
    assert cost.macs == sum(shapes.macs(graph, sizes).values())
    assert cost.parameters == sum(w.size for w in graph.parameters().values())
