"""A convolutional net, a depthwise net and a small transformer for the MNIST images of `_mnist`, which they take as [N, 784]."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

SIDE, DIGITS = 28, 10
_PATCH, _WIDTH, _HEADS, _BLOCKS = 7, 64, 4, 4


def lenet5() -> nn.Module:
    """LeNet-5 as Caffe has it: 20 and 50 filters, 500 hidden units, 430,500 weights."""
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, DIGITS),
    )


def depthwise() -> nn.Module:
    """Separable convolutions with normalization, as in MobileNet: 3x3 of each channel, then 1x1."""
    widths, layers = (
        (16, 32, 64, 128, 128),
        [nn.Unflatten(1, (1, SIDE, SIDE)), *_normalized(1, 16, 3, 2)],
    )
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        layers += _normalized(before, before, 3, 2 if index in (1, 3) else 1, groups=before)
        layers += _normalized(before, after, 1, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, DIGITS))


def transformer() -> nn.Module:
    """Four blocks of width 64 over 16 patches of 7x7."""
    return nn.Sequential(_Patches(), *(_Block() for _ in range(_BLOCKS)), _Head())


NETS: Mapping[str, Callable[[], nn.Module]] = {
    "LeNet-5": lenet5,
    "depthwise": depthwise,
    "transformer": transformer,
}


def _normalized(
    before: int, after: int, size: int, stride: int, groups: int = 1
) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU()]


class _Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, _WIDTH, _PATCH, _PATCH)
        self.position = nn.Parameter(torch.randn(1, (SIDE // _PATCH) ** 2, _WIDTH) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.embed(x.reshape(-1, 1, SIDE, SIDE)).flatten(2).transpose(1, 2)
        return tokens + self.position


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(_WIDTH, _WIDTH) for _ in range(4))
        self.mlp = nn.Sequential(
            nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.first(x))
        mixed: Tensor = x + self.mlp(self.second(x))
        return mixed

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = (self._heads(layer(x)) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(2, 3) * (_WIDTH // _HEADS) ** -0.5, dim=-1)
        attended: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return attended

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[1], _HEADS, _WIDTH // _HEADS).transpose(1, 2)


class _Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.classes = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, DIGITS)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classes(self.norm(x).mean(1))
        return scores
