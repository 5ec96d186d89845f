"""ShuffleNet v1 (Zhang et al. 2017, arXiv 1707.01083, table 1) with 3 groups: grouped 1x1 convolutions and a shuffle between them.

Width is the paper's scale s. Differs in: channels are multiples of 12, which groups and bottlenecks of a quarter ask for.
"""

from __future__ import annotations

import onnx_ir as ir

from workers.engine.graph.build import Builder
from workers.engine.zoo import _layers
from workers.engine.zoo._plan import Plan

GROUPS = 3
_DIVISOR = 4 * GROUPS
_REPEATS = (4, 8, 4)


def network(b: Builder, image: ir.Value, plan: Plan) -> ir.Value:
    """Image to scores."""
    stem, pooled, *strides = plan.strides(5)
    first = plan.channels(24, _DIVISOR)
    x = b.relu(_layers.conv_norm(b, image, first, 3, stride=stem, name="stem"))
    x = b.max_pool(x) if pooled == 2 else x
    out = max(2 * first, plan.channels(240, _DIVISOR))
    for number, (paper, stride) in enumerate(zip(_REPEATS, strides, strict=True), start=2):
        for index in range(plan.repeats(paper)):
            with b.scope(f"stage{number}/{index + 1}"):
                is_first = number == 2 and index == 0
                if index == 0:
                    x = joined_unit(b, x, out, stride, grouped=not is_first)
                else:
                    x = residual_unit(b, x)
        out *= 2
    return _layers.classify(b, x, plan.classes)


def residual_unit(b: Builder, x: ir.Value) -> ir.Value:
    """The input plus a bottleneck of grouped convolutions (figure 2b)."""
    channels = b.channels(x)
    y = _bottleneck(b, x, channels // 4, channels, stride=1, grouped=True)
    return b.relu(b.add(x, y))


def joined_unit(b: Builder, x: ir.Value, out: int, stride: int, *, grouped: bool) -> ir.Value:
    """The input, pooled where there is a stride, beside what makes up the other channels (figure 2c).

    The first unit reads so few channels that its first convolution has no groups (section 3.3).
    """
    beside = b.average_pool(x) if stride == 2 else x
    y = _bottleneck(b, x, out // 4, out - b.channels(x), stride=stride, grouped=grouped)
    return b.relu(b.concat(beside, y))


def _bottleneck(
    b: Builder, x: ir.Value, inner: int, out: int, *, stride: int, grouped: bool
) -> ir.Value:
    """Grouped 1x1, shuffle, depthwise 3x3 without a rectifier, grouped 1x1."""
    groups = GROUPS if grouped else 1
    y = b.relu(_layers.conv_norm(b, x, inner, groups=groups, name="squeeze"))
    y = _layers.depthwise_norm(b, b.shuffle(y, GROUPS), stride=stride)
    return _layers.conv_norm(b, y, out, groups=GROUPS, name="expand")
