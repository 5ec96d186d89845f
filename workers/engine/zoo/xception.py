"""Xception (Chollet 2016, arXiv 1610.02357, figure 5): separable convolutions with no non-linearity between their halves.

Differs in: the first two convolutions are padded; depth repeats the eight blocks of the middle flow.
"""

from __future__ import annotations

import onnx_ir as ir

from workers.engine.graph.build import Builder
from workers.engine.zoo import _layers
from workers.engine.zoo._plan import Plan

_MIDDLE = 8


def network(b: Builder, image: ir.Value, plan: Plan) -> ir.Value:
    """Image to scores."""
    stem, *strides, last = plan.strides(5)
    x = b.relu(_layers.conv_norm(b, image, plan.channels(32), 3, stride=stem, name="stem1"))
    x = b.relu(_layers.conv_norm(b, x, plan.channels(64), 3, name="stem2"))
    for index, (paper, stride) in enumerate(zip((128, 256, 728), strides, strict=True)):
        out = plan.channels(paper)
        with b.scope(f"entry{index + 1}"):
            x = _reducing(b, x, (out, out), stride, rectified=index > 0)
    for index in range(plan.repeats(_MIDDLE)):
        with b.scope(f"middle{index + 1}"):
            x = _middle(b, x)
    with b.scope("exit"):
        x = _reducing(b, x, (plan.channels(728), plan.channels(1024)), last)
        for name, paper in (("third", 1536), ("fourth", 2048)):
            x = b.relu(separable(b, x, plan.channels(paper), name=name))
    return _layers.classify(b, x, plan.classes)


def separable(b: Builder, x: ir.Value, out: int, *, name: str) -> ir.Value:
    """Depthwise 3x3, straight into 1x1, then one normalization."""
    with b.scope(name):
        return b.batch_norm(b.conv(b.depthwise(x), out, 1, name="pointwise"))


def _reducing(
    b: Builder, x: ir.Value, outs: tuple[int, int], stride: int, *, rectified: bool = True
) -> ir.Value:
    """Two separable convolutions and pooling, plus a strided 1x1 of the input."""
    short = _layers.conv_norm(b, x, outs[1], stride=stride, name="short")
    y = separable(b, b.relu(x) if rectified else x, outs[0], name="first")
    y = separable(b, b.relu(y), outs[1], name="second")
    return b.add(b.max_pool(y) if stride == 2 else y, short)


def _middle(b: Builder, x: ir.Value) -> ir.Value:
    """The input plus three separable convolutions, each rectified before."""
    y = x
    for name in ("first", "second", "third"):
        y = separable(b, b.relu(y), b.channels(x), name=name)
    return b.add(x, y)
