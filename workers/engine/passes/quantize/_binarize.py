"""Real weights that are trained, and the one-bit or three-valued weights that the network runs on.

    method            weights of a filter W                 scale                          gradient to W
    binary_connect    a * sign(W)                           a = mean |W| of the layer      where |W| <= a     W clipped to [-a, a]
    bnn               the same                              the same                       the same           the same
    bwn, xnor         a * sign(W)                           a = mean |W| of the filter     where |W| <= 1     W clipped to [-1, 1]
    ternary           a * sign(W) where |W| > d, else 0     a = mean of those |W|          everywhere
                      d = 0.7 * mean |W|

sign(0) is 1. Differs in: binary_connect and bnn have a = 1 in their papers, whose every layer is followed by normalization, for which
all scales are equal; a stays what it is at the beginning. bwn and xnor subtract from each filter of a convolution its mean over the
inputs, as the authors' code does, and let the gradient through the scale; xnor has scales of activations (their K) only
where input_scales asks for them, as that code has none. ternary has a scale for each filter instead of each layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers.engine.graph.codes import Codes
from workers.engine.graph.match import Layer

RATE = 10.0
"""How many times faster than other parameters weights change under Adam, relative to their mean size."""
THRESHOLD = 0.7
"""Of ternary weights, relative to the mean size (Li et al. 2016, eq. 6)."""


@dataclass(frozen=True)
class Coded:
    """A weight as (codes - shift) * scale."""

    codes: Codes
    base: int
    shift: float
    scale: np.ndarray
    """Broadcasts over the weight; a single number where the layer has one."""


class _Sign(torch.autograd.Function):
    """1 where x >= 0, else -1; the gradient passes where |x| <= limit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.limit = limit
        return _signs(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= ctx.limit), None


class _Straight(torch.autograd.Function):
    """One tensor, whose gradient goes to another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, real: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def _straight(value: Tensor, real: Tensor) -> Tensor:
    found: Tensor = _Straight.apply(value.detach(), real)  # type: ignore[no-untyped-call]
    return found


def sign(x: Tensor, limit: float = 1.0) -> Tensor:
    """The sign, 1 for 0, with a straight-through gradient where |x| <= limit (Hubara et al. 2016, section 1.3)."""
    found: Tensor = _Sign.apply(x, limit)  # type: ignore[no-untyped-call]
    return found


def _signs(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


class Latent(nn.Module):
    """The real weights of a layer, kept in units of RATE times their mean size."""

    def __init__(self, weight: np.ndarray, layer: Layer) -> None:
        super().__init__()
        real = torch.from_numpy(weight.astype(np.float32))
        self.unit = float(real.abs().mean()) or 1.0
        self.stored = nn.Parameter(real / (self.unit * RATE))
        self.layer, self.dtype = layer, weight.dtype
        self._others = [axis for axis in range(weight.ndim) if axis != layer.out_axis]

    @property
    def real(self) -> Tensor:
        """The weights that are trained."""
        return self.stored * (self.unit * RATE)

    def forward(self) -> Tensor:
        """The weights that the network runs on."""
        raise NotImplementedError

    def settle(self) -> None:
        """Brings the real weights back into bounds, after an optimizer step."""

    def coded(self) -> Coded:
        """The result."""
        raise NotImplementedError

    def _clamp(self, bound: float) -> None:
        self.stored.clamp_(-bound / (self.unit * RATE), bound / (self.unit * RATE))

    def _mean(self, x: Tensor) -> Tensor:
        """Of each filter."""
        return x.mean(dim=self._others, keepdim=True)

    def _binary(self, scale: Tensor) -> Coded:
        signs = (self.stored >= 0).cpu().numpy().astype(np.uint8)
        return Coded(signs, 2, 0.5, 2 * _array(scale))


class Connected(Latent):
    """One scale for the layer, fixed."""

    def __init__(self, weight: np.ndarray, layer: Layer, noise: torch.Generator | None) -> None:
        super().__init__(weight, layer)
        self._noise = noise
        with torch.no_grad():
            self.settle()

    def forward(self) -> Tensor:
        if self._noise is None or not self.training:
            return self.unit * sign(self.real / self.unit)
        drawn = torch.rand(self.stored.shape, generator=self._noise).to(self.stored.device)
        real = self.real
        likely = (real / self.unit + 1) / 2
        return _straight(torch.where(drawn < likely, self.unit, -self.unit), real)

    def settle(self) -> None:
        self._clamp(self.unit)

    def coded(self) -> Coded:
        return self._binary(torch.tensor(self.unit))


class Scaled(Latent):
    """A scale for each filter, which follows the weights."""

    def forward(self) -> Tensor:
        real = self.real
        return self._mean(real.abs()) * sign(real)

    def settle(self) -> None:
        if self.layer.kind == "Conv" and self.stored.shape[1] > 1:
            self.stored.sub_(self.stored.mean(dim=1, keepdim=True))
        self._clamp(1.0)

    def coded(self) -> Coded:
        return self._binary(self._mean(self.real.abs()))


class Ternary(Latent):
    """A scale for each filter, and zeros."""

    def forward(self) -> Tensor:
        real = self.real
        kept, scale = self._split(real)
        return _straight(scale * _signs(real) * kept, real)

    def coded(self) -> Coded:
        kept, scale = self._split(self.real)
        values = (_signs(self.stored) * kept + 1).cpu().numpy().astype(np.uint8)
        return Coded(values, 3, 1.0, _array(scale))

    def _split(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """Which weights are kept, and their mean size in each filter."""
        size = real.abs()
        kept = (size > THRESHOLD * self._mean(size)).to(size.dtype)
        return kept, self._mean(size * kept) / self._mean(kept).clamp_min(
            torch.finfo(size.dtype).tiny
        )


def latent(weight: np.ndarray, layer: Layer, method: str, noise: torch.Generator | None) -> Latent:
    """The real weights of a layer, as a method trains them."""
    if method in ("binary_connect", "bnn"):
        return Connected(weight, layer, noise)
    return Ternary(weight, layer) if method == "ternary" else Scaled(weight, layer)


def _array(scale: Tensor) -> np.ndarray:
    return scale.detach().cpu().numpy().astype(np.float32)
