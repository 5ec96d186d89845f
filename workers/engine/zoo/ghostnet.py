"""GhostNet (Han et al. 2019, arXiv 1911.11907, table 7): half of each layer's maps are made from the other half by cheap operations.

Depth takes that share of the blocks of each stage after its first.
"""

from __future__ import annotations

import math
from itertools import groupby

import onnx_ir as ir

from workers.engine.graph.build import Builder
from workers.engine.zoo import _layers
from workers.engine.zoo._plan import Plan

_DIVISOR = 4
_SQUEEZED = 4
_LAST = 1280

_Block = tuple[int, int, int, int, bool]

_BLOCKS: tuple[_Block, ...] = (  # stage, kernel, expansion, out, whether squeezed and excited
    (1, 3, 16, 16, False),
    (2, 3, 48, 24, False),
    (2, 3, 72, 24, False),
    (3, 5, 72, 40, True),
    (3, 5, 120, 40, True),
    (4, 3, 240, 80, False),
    (4, 3, 200, 80, False),
    (4, 3, 184, 80, False),
    (4, 3, 184, 80, False),
    (4, 3, 480, 112, True),
    (4, 3, 672, 112, True),
    (5, 5, 672, 160, True),
    (5, 5, 960, 160, False),
    (5, 5, 960, 160, True),
    (5, 5, 960, 160, False),
    (5, 5, 960, 160, True),
)
"""Each stage but the first halves the map in its first block."""


def network(b: Builder, image: ir.Value, plan: Plan) -> ir.Value:
    """Image to scores."""
    stem, *strides = plan.strides(5)
    out = plan.channels(16, _DIVISOR)
    x = b.relu(_layers.conv_norm(b, image, out, 3, stride=stem, name="stem"))
    for stage, members in groupby(_BLOCKS, key=lambda block: block[0]):
        first, *others = members
        blocks = [first, *_repeated(others, plan.depth)]
        for index, (_, kernel, inner, out, gated) in enumerate(blocks):
            stride = strides[stage - 2] if stage > 1 and index == 0 else 1
            sizes = plan.channels(inner, _DIVISOR), plan.channels(out, _DIVISOR)
            with b.scope(f"stage{stage}/{index + 1}"):
                x = bottleneck(b, x, *sizes, kernel, stride, gated=gated)
    x = b.relu(_layers.conv_norm(b, x, plan.channels(960, _DIVISOR), name="last"))
    x = b.relu(b.conv(b.global_average_pool(x), _LAST, 1, bias=True, name="head"))
    return b.linear(b.flatten(x), plan.classes, name="classifier")


def _repeated(blocks: list[_Block], depth: float) -> list[_Block]:
    """As many of the blocks of a stage as `depth` asks for, evenly taken; the last one, which sets the channels, is among them."""
    count = round(len(blocks) * depth)
    if count == 0:
        return blocks[-1:]
    return [blocks[-1 - (count - 1 - i) * len(blocks) // count] for i in range(count)]


def ghost_module(
    b: Builder, x: ir.Value, out: int, *, rectified: bool, ratio: int = 2, name: str
) -> ir.Value:
    """A 1x1 convolution to out / ratio maps, a depthwise 3x3 that makes the others from them, and of both the first `out` (section 3.1)."""
    primary = math.ceil(out / ratio)
    with b.scope(name):
        y = _layers.conv_norm(b, x, primary, name="primary")
        y = b.relu(y) if rectified else y
        z = _layers.conv_norm(b, y, primary * (ratio - 1), 3, groups=primary, name="cheap")
        z = b.relu(z) if rectified else z
        joined = b.concat(y, z)
        return joined if b.channels(joined) == out else b.take(joined, 0, out)


def bottleneck(
    b: Builder, x: ir.Value, inner: int, out: int, kernel: int, stride: int, *, gated: bool
) -> ir.Value:
    """Two Ghost modules, where there is a stride a depthwise convolution between them, plus the input (figure 3)."""
    y = ghost_module(b, x, inner, rectified=True, name="ghost1")
    if stride == 2:
        y = _layers.depthwise_norm(b, y, kernel, stride=stride)
    y = _excited(b, y) if gated else y
    y = ghost_module(b, y, out, rectified=False, name="ghost2")
    return b.add(y, _short(b, x, out, kernel, stride))


def _short(b: Builder, x: ir.Value, out: int, kernel: int, stride: int) -> ir.Value:
    if stride == 1 and b.channels(x) == out:
        return x
    with b.scope("short"):
        return _layers.conv_norm(b, _layers.depthwise_norm(b, x, kernel, stride=stride), out)


def _excited(b: Builder, x: ir.Value) -> ir.Value:
    """Each channel times a gate that is computed from the means of all (squeeze and excite)."""
    channels = b.channels(x)
    inner = Plan(1 / _SQUEEZED, 1, 1, 1).channels(channels, _DIVISOR)
    with b.scope("excite"):
        y = b.relu(b.conv(b.global_average_pool(x), inner, 1, bias=True, name="reduce"))
        return b.mul(x, b.hard_sigmoid(b.conv(y, channels, 1, bias=True, name="expand")))
