"""ShuffleNet v2 (Ma et al. 2018, arXiv 1807.11164, table 5): half of the channels pass, the other half is convolved, then both are shuffled.

Differs in: at widths other than the paper's four, channels are the nearest multiples of 4.
"""

from __future__ import annotations

import onnx_ir as ir

from workers.engine.graph.build import Builder
from workers.engine.zoo import _layers
from workers.engine.zoo._plan import Plan

_OF_PAPER = {0.5: 48, 1.0: 116, 1.5: 176, 2.0: 244}
"""Channels of the first stage by width; each stage doubles them."""
_STEM = 24
_REPEATS = (4, 8, 4)


def network(b: Builder, image: ir.Value, plan: Plan) -> ir.Value:
    """Image to scores."""
    stem, pooled, *strides = plan.strides(5)
    x = b.relu(_layers.conv_norm(b, image, _STEM, 3, stride=stem, name="stem"))
    x = b.max_pool(x) if pooled == 2 else x
    out = _OF_PAPER.get(plan.width) or plan.channels(_OF_PAPER[1.0], 4)
    for number, (paper, stride) in enumerate(zip(_REPEATS, strides, strict=True), start=2):
        for index in range(plan.repeats(paper)):
            with b.scope(f"stage{number}/{index + 1}"):
                x = reducing_unit(b, x, out, stride) if index == 0 else split_unit(b, x)
        out *= 2
    last = 2048 if plan.width >= 2 else 1024
    return _layers.classify(b, b.relu(_layers.conv_norm(b, x, last, name="last")), plan.classes)


def split_unit(b: Builder, x: ir.Value) -> ir.Value:
    """One half of the channels as it is beside the other half convolved (figure 3c)."""
    channels = b.channels(x)
    kept, taken = b.take(x, 0, channels // 2), b.take(x, channels // 2, channels)
    return b.shuffle(b.concat(kept, _branch(b, taken, channels // 2, 1)), 2)


def reducing_unit(b: Builder, x: ir.Value, out: int, stride: int) -> ir.Value:
    """All channels convolved in two ways, half of the result from each (figure 3d)."""
    with b.scope("short"):
        short = _layers.depthwise_norm(b, x, stride=stride)
        short = b.relu(_layers.conv_norm(b, short, out // 2))
    return b.shuffle(b.concat(short, _branch(b, x, out // 2, stride)), 2)


def _branch(b: Builder, x: ir.Value, out: int, stride: int) -> ir.Value:
    """1x1, depthwise 3x3 without a rectifier, 1x1, of one width."""
    x = b.relu(_layers.conv_norm(b, x, out, name="first"))
    x = _layers.depthwise_norm(b, x, stride=stride)
    return b.relu(_layers.conv_norm(b, x, out, name="second"))
