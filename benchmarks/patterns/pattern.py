"""What all patterns share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10


@dataclass(frozen=True)
class Pattern:
    """A network whose last layer is called `head`, and what one sample for it looks like."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 16, 16)
    vocabulary: int = 0
    """Samples are numbers below it; 0 where they are real."""

    def example(self, batch: int) -> Tensor:
        """A batch of random samples, the same each time. [batch, *shape]."""
        generator = torch.Generator().manual_seed(0)
        if self.vocabulary:
            return torch.randint(self.vocabulary, (batch, *self.shape), generator=generator)
        return torch.randn(batch, *self.shape, generator=generator)


class Pooled(nn.Module):
    """Pools the channels of images and classifies."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))

    def features(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, width, H', W']."""
        raise NotImplementedError


class Averaged(nn.Module):
    """Makes a stream of tokens, averages it and classifies."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixed(self.first(x)).mean(1))

    def mixed(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T', width]."""
        raise NotImplementedError


def block(inputs: int, outputs: int, size: int = 3, groups: int = 1) -> nn.Sequential:
    """Convolution, normalization, rectifier."""
    convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Shuffle(nn.Module):
    """Mixes the channels of groups (ShuffleNet)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Excited(nn.Module):
    """Channels are weighed by a small network of their means (SENet)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.up(functional.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()
