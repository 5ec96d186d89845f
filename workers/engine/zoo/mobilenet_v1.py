"""MobileNet v1 (Howard et al. 2017, arXiv 1704.04861, table 1): depthwise separable convolutions.

Width is the paper's alpha. Differs in: depth repeats the five middle blocks of 512 channels.
"""

from __future__ import annotations

import onnx_ir as ir

from workers.engine.graph.build import Builder
from workers.engine.zoo import _layers
from workers.engine.zoo._plan import Plan

_MIDDLE = 5


def network(b: Builder, image: ir.Value, plan: Plan) -> ir.Value:
    """Image to scores."""
    stem, second, third, fourth, fifth = plan.strides(5)
    blocks = [(64, 1), (128, second), (128, 1), (256, third), (256, 1), (512, fourth)]
    blocks += [(512, 1)] * plan.repeats(_MIDDLE) + [(1024, fifth), (1024, 1)]
    x = b.relu(_layers.conv_norm(b, image, plan.channels(32), 3, stride=stem, name="stem"))
    for index, (out, stride) in enumerate(blocks, start=1):
        with b.scope(f"block{index}"):
            x = separable(b, x, plan.channels(out), stride)
    return _layers.classify(b, x, plan.classes)


def separable(b: Builder, x: ir.Value, out: int, stride: int) -> ir.Value:
    """Depthwise 3x3, then 1x1, each normalized and rectified (figure 3)."""
    x = b.relu(_layers.depthwise_norm(b, x, stride=stride))
    return b.relu(_layers.conv_norm(b, x, out, name="pointwise"))
