"""SqueezeNet (Iandola et al. 2016, arXiv 1602.07360): Fire modules, no linear layer, late down-sampling.

Version 1.0 is table 1 of the paper. Version 1.1, by the same authors, has 64 filters of 3x3 first and pools earlier: 2.4 times less computation.
Differs in: convolutions are padded to keep the size at stride 1; depth repeats the modules of each of the four widths.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from workers.engine.graph.build import Builder
from workers.engine.zoo._plan import Plan

_MODULES = 8
_DROPPED = 0.5


def version_1_0(b: Builder, image: ir.Value, plan: Plan) -> ir.Value:
    """7x7 with 96 filters first; pools before the modules fire2, fire5 and fire9."""
    return _network(b, image, plan, first=(96, 7), pools=(0, 3, 7))


def version_1_1(b: Builder, image: ir.Value, plan: Plan) -> ir.Value:
    """3x3 with 64 filters first; pools before the modules fire2, fire4 and fire6."""
    return _network(b, image, plan, first=(64, 3), pools=(0, 2, 4))


def fire(b: Builder, x: ir.Value, squeeze: int, expand: int) -> ir.Value:
    """1x1 to `squeeze` channels, then 1x1 and 3x3 side by side to `expand` each (section 3.2); rectified both times."""
    x = b.relu(b.conv(x, squeeze, 1, bias=True, name="squeeze"))
    ones = b.conv(x, expand, 1, bias=True, name="expand1x1")
    threes = b.conv(x, expand, 3, bias=True, name="expand3x3")
    return b.concat(b.relu(ones), b.relu(threes))


def _network(
    b: Builder, image: ir.Value, plan: Plan, first: tuple[int, int], pools: Sequence[int]
) -> ir.Value:
    strides = plan.strides(1 + len(pools))
    repeats = plan.repeats(2)
    places = [round(place * 4 * repeats / _MODULES) for place in pools]
    x = b.conv(image, plan.channels(first[0]), first[1], stride=strides[0], bias=True, name="conv1")
    x = b.relu(x)
    for index in range(4 * repeats):
        for _ in [s for p, s in zip(places, strides[1:], strict=True) if p == index and s == 2]:
            x = b.max_pool(x)
        level = index // repeats + 1
        with b.scope(f"fire{index + 2}"):
            x = fire(b, x, plan.channels(16 * level), plan.channels(64 * level))
    x = b.conv(b.dropout(x, _DROPPED), plan.classes, 1, bias=True, name="conv10")
    return b.flatten(b.global_average_pool(x))
