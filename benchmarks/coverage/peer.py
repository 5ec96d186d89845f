"""Prunes one network with Torch-Pruning, defaults, the classifier ignored; runs in the environment of the architectures.

python peer.py ARCHITECTURE PIXELS FILE
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
import torch_pruning
from torch import nn


def main(name: str, pixels: int, path: str) -> None:
    """Writes what happened as JSON."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    try:
        found = checked(timm.create_model(name).eval(), pixels)
    except Exception as error:
        found = {"valid": False, "why": f"{type(error).__name__}: {error}"[:300]}
    Path(path).write_text(json.dumps(found))


def checked(network: nn.Module, pixels: int) -> dict[str, Any]:
    """Half of each layer goes; the rest must answer as before, and train a step."""
    x = torch.randn(2, 3, pixels, pixels)
    before, shape = size(network), network(x).shape
    classifiers = network.get_classifier() if hasattr(network, "get_classifier") else []
    ignored = list(classifiers) if isinstance(classifiers, (tuple, list)) else [classifiers]
    start = time.process_time()
    importance = torch_pruning.importance.MagnitudeImportance()
    torch_pruning.pruner.BasePruner(
        network, x, importance, pruning_ratio=0.5, ignored_layers=ignored
    ).step()
    seconds = time.process_time() - start
    y = network.train()(x)
    if y.shape != shape:
        raise ValueError(f"answers {tuple(y.shape)}, not {tuple(shape)}")
    y.square().mean().backward()
    torch.optim.SGD(network.parameters(), 1e-3).step()
    if size(network) >= before:
        raise ValueError("nothing was removed")
    return {"valid": True, "ratio": size(network) / before, "seconds": seconds}


def size(network: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
