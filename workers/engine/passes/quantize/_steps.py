"""Learned step sizes (Esser et al. 2019, arXiv 1902.08153).

v = clip(x / s, low, high),  x' = round(v) * s                                           (eq. 1, 2)
dx'/ds = round(x / s) - x / s inside, low or high outside;  dx'/dx = 1 inside, 0 outside     (eq. 3)
The gradient of s is divided by sqrt(n * high), n the number of values that share it.    (2.2)
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

_SMALLEST = 1e-3


class StepSize(nn.Module):
    """Rounds values to codes low..high of a learned step, one for all of them or one for each channel of `axis`.

    `relative`: what is trained is the step over its first value, as an optimizer wants that moves everything by its learning rate;
    otherwise it is the step itself, as in the paper.
    """

    factor: nn.Parameter
    unit: Tensor

    def __init__(
        self,
        scale: npt.NDArray[np.float32],
        low: int,
        high: int,
        *,
        axis: int | None,
        of_samples: bool,
        relative: bool,
    ) -> None:
        super().__init__()
        first = torch.from_numpy(np.array(scale, dtype=np.float32))
        self.register_buffer("unit", first.clone() if relative else torch.ones_like(first))
        self.factor = nn.Parameter(first / self.unit)
        self._first = first
        self._low, self._high, self._axis, self._of_samples = low, high, axis, of_samples

    @property
    def scale(self) -> Tensor:
        """The step: () or [channels]."""
        smallest = _SMALLEST * self._first.to(self.unit.device)
        return torch.maximum(self.factor * self.unit, smallest)

    def forward(self, x: Tensor) -> Tensor:
        """What the codes of x stand for."""
        x = x.float()
        scale = self._along(_slowed(self.scale, self._slowness(x)), x.ndim)
        v = (x / scale).clamp(self._low, self._high)
        return (v + (v.round() - v).detach()) * scale

    def learned(self) -> npt.NDArray[np.float32]:
        """The step as an array."""
        found: npt.NDArray[np.float32] = self.scale.detach().cpu().numpy()
        return found

    @property
    def change(self) -> float:
        """Median of the step over its first value."""
        first = self._first.to(self.unit.device)
        return float((self.scale.detach() / first).median())

    def _slowness(self, x: Tensor) -> float:
        """1 / sqrt(n * high): n counts the values of one sample, or the weights of one step."""
        count = x[0].numel() if self._of_samples else x.numel() / self.unit.numel()
        return 1 / math.sqrt(max(count, 1) * max(self._high, 1))

    def _along(self, scale: Tensor, rank: int) -> Tensor:
        if self._axis is None:
            return scale
        return scale.reshape([-1 if axis == self._axis else 1 for axis in range(rank)])


def _slowed(x: Tensor, factor: float) -> Tensor:
    """x, whose gradient is multiplied by a factor."""
    slow = x * factor
    return slow + (x - slow).detach()
