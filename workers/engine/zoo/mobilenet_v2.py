"""MobileNet v2 (Sandler et al. 2018, arXiv 1801.04381, table 2): inverted residuals with linear bottlenecks.

Width scales all layers, the last convolution only upwards, as in section 6.1. Depth scales the paper's n.
"""

from __future__ import annotations

import onnx_ir as ir

from workers.engine.graph.build import Builder
from workers.engine.zoo import _layers
from workers.engine.zoo._plan import Plan

_LAST = 1280


def network(b: Builder, image: ir.Value, plan: Plan) -> ir.Value:
    """Image to scores."""
    stem, second, third, fourth, fifth = plan.strides(5)
    stages = [  # expansion t, channels c, repetitions n, stride s of the first
        (1, 16, 1, 1),
        (6, 24, 2, second),
        (6, 32, 3, third),
        (6, 64, 4, fourth),
        (6, 96, 3, 1),
        (6, 160, 3, fifth),
        (6, 320, 1, 1),
    ]
    x = b.relu6(_layers.conv_norm(b, image, plan.channels(32), 3, stride=stem, name="stem"))
    for number, (expansion, out, repeats, stride) in enumerate(stages, start=1):
        for index in range(plan.repeats(repeats)):
            with b.scope(f"stage{number}/{index + 1}"):
                step = stride if index == 0 else 1
                x = inverted_residual(b, x, plan.channels(out), expansion, step)
    last = max(_LAST, plan.channels(_LAST))
    return _layers.classify(b, b.relu6(_layers.conv_norm(b, x, last, name="last")), plan.classes)


def inverted_residual(b: Builder, x: ir.Value, out: int, expansion: int, stride: int) -> ir.Value:
    """Expand, depthwise 3x3, project without a rectifier; added to its input where the sizes agree (figure 3b)."""
    y = x
    if expansion != 1:
        y = b.relu6(_layers.conv_norm(b, x, expansion * b.channels(x), name="expand"))
    y = b.relu6(_layers.depthwise_norm(b, y, stride=stride))
    y = _layers.conv_norm(b, y, out, name="project")
    return b.add(x, y) if stride == 1 and b.channels(x) == out else y
