"""Numbers whose signs are multiplied."""

from __future__ import annotations

import numpy as np


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers, some of them 0 and -0."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype(np.float32)
    x.flat[rng.integers(0, x.size, x.size // 7)] = 0.0
    x.flat[rng.integers(0, x.size, x.size // 7)] = -0.0
    return x
