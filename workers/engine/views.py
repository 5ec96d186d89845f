"""Varied samples: one view of a batch, which all networks that run on it share.

Moved and mirrored images; mixed samples (mixup: Zhang et al. 2018, arXiv 1710.09412).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modelpress.spec.distill import Augment
from workers.engine.errors import Unsupported

_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Mixed:
    """How the samples of a batch were mixed: share * x + (1 - share) * x[partners]."""

    share: float
    partners: Tensor  # [N] int64


class Views:
    """Draws a view of each batch that is trained on."""

    def __init__(self, augment: Augment, rng: np.random.Generator) -> None:
        self._augment, self._rng = augment, rng
        self.mixed: Mixed | None = None

    def take(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A view of a batch; `mixed` then says how its samples were mixed.

        Raises:
            Unsupported: images are to be moved and no input holds any, or samples are to be mixed and no input is of floats.
        """
        if self._augment.shift or self._augment.flip:
            inputs = self._moved(inputs)
        return inputs if self._augment.mixup is None else self._mixed(inputs, self._augment.mixup)

    def labels(self, loss: Callable[[Tensor], Tensor], labels: Tensor) -> Tensor:
        """The loss by labels [N] of the view taken last: of a mixed sample, that of both labels by their shares."""
        if self.mixed is None:
            return loss(labels)
        share = self.mixed.share
        return share * loss(labels) + (1 - share) * loss(labels[self.mixed.partners])

    def _mixed(self, inputs: tuple[Tensor, ...], concentration: float) -> tuple[Tensor, ...]:
        if not all(x.is_floating_point() for x in inputs):
            raise Unsupported(
                f"mixup adds samples, but inputs of the model are {[str(x.dtype) for x in inputs][:8]}",
                hint="leave augment.mixup out",
            )
        share = float(self._rng.beta(concentration, concentration))
        partners = torch.from_numpy(self._rng.permutation(len(inputs[0]))).to(inputs[0].device)
        self.mixed = Mixed(share, partners)
        return tuple(share * x + (1 - share) * x[partners] for x in inputs)

    def _moved(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images = [_rows_axis(x) for x in inputs]
        if not any(images):
            raise Unsupported(
                f"shift and flip are for images [N, C, H, W] or [N, H, W, C], but inputs of the model are {[list(x.shape) for x in inputs][:8]}",
                hint="leave them out of augment",
            )
        samples = len(inputs[0])
        moves = self._rng.integers(-self._augment.shift, self._augment.shift + 1, (2, samples))
        flips = self._rng.random(samples) < 0.5 if self._augment.flip else np.zeros(samples, bool)
        return tuple(
            _moved(x, axis, moves, flips) if axis else x
            for x, axis in zip(inputs, images, strict=True)
        )


def _rows_axis(x: Tensor) -> int:
    """The axis of an image's rows, which that of its columns follows; 0 where it is no image."""
    if x.ndim != 4 or not x.is_floating_point():
        return 0
    return 1 if x.shape[3] in _CHANNELS and x.shape[1] not in _CHANNELS else 2


def _moved(x: Tensor, axis: int, moves: np.ndarray, flips: np.ndarray) -> Tensor:
    """Each image moved by (rows, columns) of moves [2, N] and mirrored where flips [N] says so."""
    turned = x.movedim((axis, axis + 1), (1, 2))
    rows, columns = (
        np.clip(np.arange(size) + move[:, None], 0, size - 1)
        for size, move in zip(turned.shape[1:3], moves, strict=True)
    )
    columns = np.where(flips[:, None], columns[:, ::-1], columns)
    places = (torch.from_numpy(np.ascontiguousarray(p)).to(x.device) for p in (rows, columns))
    down, along = places
    samples = torch.arange(len(x), device=x.device)[:, None, None]
    return turned[samples, down[:, :, None], along[:, None, :]].movedim((1, 2), (axis, axis + 1))
