"""Networks of torchvision, the smallest of a family each, on images as small as they take."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from benchmarks.patterns.pattern import Pattern
from workers.engine.formats import architectures


def _net(name: str, pixels: int = 64, **options: Any) -> Pattern:
    return Pattern(functools.partial(_build, name, **options), (3, pixels, pixels))


def _build(name: str, **options: Any) -> nn.Module:
    architectures.load_timm()  # and with it torchvision, also one that was built for another torch
    models = importlib.import_module("torchvision.models")
    network: nn.Module = models.get_model(name, weights=None, **options)
    return network


PATTERNS: Mapping[str, Pattern] = {
    "alexnet": _net("alexnet"),
    "convnext_tiny": _net("convnext_tiny"),
    "densenet121": _net("densenet121"),
    "efficientnet_b0": _net("efficientnet_b0"),
    "googlenet": _net("googlenet", aux_logits=False, init_weights=False),
    "inception_v3": _net("inception_v3", 96, aux_logits=False, init_weights=False),
    "mnasnet0_5": _net("mnasnet0_5"),
    "mobilenet_v2": _net("mobilenet_v2"),
    "mobilenet_v3_small": _net("mobilenet_v3_small"),
    "regnet_y_400mf": _net("regnet_y_400mf"),
    "resnet18": _net("resnet18"),
    "resnext50_32x4d": _net("resnext50_32x4d"),
    "shufflenet_v2_x0_5": _net("shufflenet_v2_x0_5"),
    "squeezenet1_1": _net("squeezenet1_1"),
    "swin_t": _net("swin_t"),
}
