"""Rounding to the nearest code, group by group of columns."""

from __future__ import annotations

import torch
from torch.nn import functional

from workers.engine.passes.quantize import _grid
from workers.engine.passes.quantize._grid import Grid, Scales

Tensor = torch.Tensor


def nearest(w: Tensor, worth: Tensor | None, grid: Grid, group: int) -> tuple[Tensor, Scales]:
    """Codes [rows, columns] and scales [rows, groups] of w [rows, columns]; `worth` [columns] weighs errors where a range is searched."""
    blocks = grouped(w, group)
    weighed = None if worth is None else grouped(worth.unsqueeze(0), group)
    scales = _grid.fit(blocks, weighed, grid)
    codes = _grid.encode(blocks, scales, grid)
    return codes.flatten(1)[:, : w.shape[1]], scales


def decoded(codes: Tensor, scales: Scales, group: int) -> Tensor:
    """What codes [rows, columns] stand for."""
    return _grid.decode(grouped(codes, group), scales).flatten(1)[:, : codes.shape[1]]


def grouped(values: Tensor, group: int) -> Tensor:
    """[rows, columns] as [rows, groups, group]; the last group is filled up with zeros."""
    missing = -values.shape[1] % group
    return functional.pad(values, (0, missing)).reshape(len(values), -1, group)
