"""Patterns in which public architectures are exported, each once small."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from modelpress.spec.prune import PruneChannels
from tests.engine import jobs, nets
from tests.engine.nets import Builder
from workers.engine import formats, passes
from workers.engine.graph import execute

IMAGE = [("image", TensorProto.FLOAT, ["batch", 2, 8, 8])]


def bias_of_expanded_zeros() -> onnx.ModelProto:
    """A bias that is computed from the shape of the weight, as torch.onnx writes a convolution without one."""
    b = Builder(0)
    w = b.random("weight", 12, 2, 3, 3)
    zero = b.op("CastLike", b.constant("zero", np.array(0, np.float32)), "image")
    size = b.op("Shape", w, start=0, end=1)
    x = b.op("Conv", "image", w, b.op("Expand", zero, size), pads=[1] * 4)
    return b.model(IMAGE, b.pooled_classifier(b.op("Relu", x), 12))


def pruned(model: onnx.ModelProto, tmp_path):
    onnx.save(model, tmp_path / "net.onnx")
    graph = formats.load(tmp_path / "net.onnx")
    return passes.apply(graph, PruneChannels(fraction=0.5), jobs.context_of(graph, tmp_path, None))


def test_a_bias_made_of_the_shape_of_its_weight_goes_with_it(tmp_path):
    model = bias_of_expanded_zeros()
    graph = pruned(model, tmp_path)
    assert graph.parameters()["weight_1"].shape[0] == 6
    assert execute.run(graph, nets.feeds(model, 3, seed=1))["logits"].shape == (3, nets.CLASSES)
