"""A real task small enough for a demonstration: the 8x8 handwritten digits that come with scikit-learn."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

EPOCHS = 10
BATCH = 64
INPUT = "image"


def save_data(directory: Path) -> tuple[Path, Path]:
    """Writes train.npz and eval.npz: `image` [N, 1, 8, 8] float32 in 0..1, `labels` [N] int64."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    parts = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    paths = directory / "train.npz", directory / "eval.npz"
    for path, x, y in zip(paths, parts[:2], parts[2:], strict=True):
        np.savez(path, **{INPUT: x, "labels": y})
    return paths


def train(data: Path) -> nn.Module:
    """A convolutional network that has learnt the digits."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # layers this small gain nothing from more
    arrays = np.load(data)
    images, labels = torch.from_numpy(arrays[INPUT]), torch.from_numpy(arrays["labels"])
    network = _network()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            loss = nn.functional.cross_entropy(network(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def export(network: nn.Module, path: Path) -> None:
    """Writes ONNX for any batch size, with BatchNormalization kept apart: fine-tuning needs it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of itself
        torch.onnx.export(
            network,
            (torch.zeros(2, 1, 8, 8),),
            path,
            input_names=[INPUT],
            output_names=["scores"],
            dynamic_axes={INPUT: {0: "batch"}, "scores": {0: "batch"}},
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            dynamo=False,
        )


def _network() -> nn.Sequential:
    return nn.Sequential(
        *_convolution(1, 24),
        *_convolution(24, 48),
        nn.MaxPool2d(2),
        *_convolution(48, 96),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(96 * 2 * 2, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return layer, nn.BatchNorm2d(outputs), nn.ReLU()


def accuracy(network: nn.Module, data: Path) -> float:
    """The share of digits the network reads correctly."""
    arrays = np.load(data)
    with torch.no_grad():
        scores: Tensor = network(torch.from_numpy(arrays[INPUT]))
    return float((scores.argmax(1).numpy() == arrays["labels"]).mean())
