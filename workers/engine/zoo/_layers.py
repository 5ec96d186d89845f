"""Combinations of layers that the networks of the zoo have in common."""

from __future__ import annotations

import onnx_ir as ir

from workers.engine.graph.build import Builder


def conv_norm(
    b: Builder,
    x: ir.Value,
    out: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    name: str = "conv",
) -> ir.Value:
    """Convolution and normalization."""
    with b.scope(name):
        return b.batch_norm(b.conv(x, out, kernel, stride=stride, groups=groups))


def depthwise_norm(
    b: Builder, x: ir.Value, kernel: int = 3, *, stride: int = 1, name: str = "depthwise"
) -> ir.Value:
    """Depthwise convolution and normalization."""
    channels = b.channels(x)
    return conv_norm(b, x, channels, kernel, stride=stride, groups=channels, name=name)


def classify(b: Builder, x: ir.Value, classes: int) -> ir.Value:
    """The mean of each channel, then a linear layer."""
    return b.linear(b.flatten(b.global_average_pool(x)), classes, name="classifier")
