"""A small network with weights of one bit, trained by Brevitas, in a venv of its own: what benchmarks.binary runs for its peer.

    python _brevitas.py SIGNS EPOCHS RATE BATCH SEED FOLDER

FOLDER has float.pt (a Sequential), train.npz and test.npz. SIGNS is `w`, weights alone, or `wa`, activations too: the latter have normalization before them
instead of rectifiers behind. Prints the accuracy on the test images and CPU seconds of training.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import brevitas.nn as qnn
import numpy as np
import torch
from brevitas.quant import SignedBinaryActPerTensorConst, SignedBinaryWeightPerTensorConst
from torch import Tensor, nn


def main(signs: str, epochs: str, rate: str, batch: str, seed: str, folder: str) -> None:
    """Trains and prints."""
    torch.set_num_threads(1)
    torch.manual_seed(int(seed))
    trained = torch.load(Path(folder) / "float.pt", weights_only=False)
    network = nn.Sequential(*_layers(trained, both=signs == "wa"))
    train, test = (_split(Path(folder) / f"{name}.npz") for name in ("train", "test"))
    began = time.process_time()
    _fit(network, train, int(epochs), float(rate), int(batch))
    seconds = time.process_time() - began
    network.eval()
    with torch.no_grad():
        right = network(test[0]).argmax(1) == test[1]
    print(float(right.float().mean()), seconds)


def _split(path: Path) -> tuple[Tensor, Tensor]:
    with np.load(path) as file:
        return torch.from_numpy(file["image"]), torch.from_numpy(file["labels"])


def _layers(trained: nn.Sequential, *, both: bool) -> Iterator[nn.Module]:
    """The same layers with signs for weights; where activations are signs, normalization and the sign before all but the first."""
    is_first = True
    for layer in trained:
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            if not (both and isinstance(layer, nn.ReLU)):
                yield layer
            continue
        if both and not is_first:
            yield _normalization(layer)
            yield qnn.QuantIdentity(act_quant=SignedBinaryActPerTensorConst)
        is_first = False
        yield _signed(layer)


def _normalization(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return nn.BatchNorm1d(layer.in_features, eps=1e-4)
    return nn.BatchNorm2d(layer.in_channels, eps=1e-4)


def _signed(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """With the mean size of the layer's weights as their scale, which is ours too."""
    options = {
        "weight_quant": SignedBinaryWeightPerTensorConst,
        "weight_scaling_const": float(layer.weight.detach().abs().mean()),
    }
    if isinstance(layer, nn.Linear):
        made = qnn.QuantLinear(layer.in_features, layer.out_features, bias=True, **options)
    else:
        sizes = layer.in_channels, layer.out_channels, layer.kernel_size
        made = qnn.QuantConv2d(*sizes, bias=True, **options)
    made.load_state_dict(layer.state_dict(), strict=False)
    return made


def _fit(
    network: nn.Module, split: tuple[Tensor, Tensor], epochs: int, rate: float, batch: int
) -> None:
    """Adam, its rate falling by a cosine, as in our steps."""
    x, y = split
    optimizer = torch.optim.Adam(network.parameters(), rate)
    steps = epochs * math.ceil(len(x) / batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[chosen]), y[chosen]).backward()
            optimizer.step()
            schedule.step()


if __name__ == "__main__":
    main(*sys.argv[1:])
