"""A network and its data as a user would have them, small, real, and made without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from sklearn.datasets import load_digits

from tests.engine import nets

SAMPLES = 400


def digits(directory: Path) -> tuple[Path, Path]:
    """Writes model.onnx, a convolutional network that has learnt nothing, and data.npz, handwritten digits."""
    model, data = directory / "model.onnx", directory / "data.npz"
    onnx.save(nets.plain_cnn(), model)
    found = load_digits()
    images = (found.images[:SAMPLES, None] / 16).astype(np.float32)
    np.savez(data, image=images, labels=found.target[:SAMPLES].astype(np.int64))
    return model, data
