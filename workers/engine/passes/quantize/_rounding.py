"""Rounds the weights of one layer at so many bits by the method that the step asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from modelpress.spec.quantize import QuantizeBits
from workers.engine.passes.quantize import _awq, _error, _gptq, _grid, _nbits, _round
from workers.engine.passes.quantize._grid import Grid, Scales
from workers.engine.passes.quantize._matrix import Matrix
from workers.engine.passes.quantize._moments import Moments
from workers.engine.passes.quantize._packed import Packed

Tensor = torch.Tensor


@dataclass(frozen=True)
class Rounded:
    """A weight in few bits."""

    packed: Packed
    error: float
    """The norm of a change over the norm of what was: of the layer's outputs on training samples, or of the weights."""
    of_outputs: bool
    how: str
    """Empty, or what a reader should know of how it was rounded."""


def rounded(
    weight: npt.NDArray[np.generic],
    matrix: Matrix,
    bits: int,
    moments: Moments | None,
    step: QuantizeBits,
) -> Rounded:
    """The weight at `bits` bits; rounded to nearest where there are no moments."""
    rows = torch.from_numpy(matrix.to_rows(np.asarray(weight, np.float64)).copy())
    group = group_of(matrix, step)
    grid = Grid(bits, step.symmetric, step.range == "mse")
    if step.scales == "float16" and _grid.fits_half(_round.grouped(rows, group), grid):
        grid = Grid(bits, step.symmetric, step.range == "mse", half=True)
    parts = [
        _part(part, moments, index, grid, group, step)
        for index, part in enumerate(rows.chunk(matrix.groups))
    ]
    packed = _joined(parts, matrix, grid, group)
    return Rounded(packed, _moved(rows, packed, moments), moments is not None, parts[0].how)


def group_of(matrix: Matrix, step: QuantizeBits) -> int:
    """Columns that share a scale: all, or groups of equal size, none larger than asked for.

    Where weights stay packed for MatMulNBits, exactly as asked.
    """
    columns = matrix.columns
    if step.group_size is None or step.group_size >= columns:
        return columns
    if step.unpack == "run" and step.group_size in _nbits.BLOCKS:
        return step.group_size
    return -(-columns // -(-columns // step.group_size))


@dataclass(frozen=True)
class _Part:
    """Rows that meet the same inputs."""

    codes: Tensor
    scales: Scales
    divisor: Tensor | None = None
    how: str = ""


def _part(
    rows: Tensor, moments: Moments | None, index: int, grid: Grid, group: int, step: QuantizeBits
) -> _Part:
    if moments is None:
        codes, scales = _round.nearest(rows, None, grid, group)
        return _Part(codes, scales)
    rows, h = rows.to(moments.h.device), moments.h[index]
    if step.method == "gptq":
        asked = _gptq.Asked(grid, group, step.damping, step.act_order)
        return _Part(*_gptq.solve(rows, h, asked))
    if step.method == "awq" and len(moments.h) == 1:
        found = _awq.solve(rows, h, moments.size[index], grid, group)
        divisor = found.divisor if found.exponent else None
        return _Part(found.codes, found.scales, divisor, f"AWQ exponent {found.exponent:g}")
    codes, scales = _round.nearest(rows, h.diagonal(), grid, group)
    how = "grouped: to nearest" if step.method == "awq" else ""
    return _Part(codes, scales, how=how)


def _joined(parts: Sequence[_Part], matrix: Matrix, grid: Grid, group: int) -> Packed:
    codes = torch.cat([part.codes for part in parts]).cpu().numpy()
    scale = torch.cat([part.scales.scale for part in parts]).cpu().numpy()
    zero = torch.cat([part.scales.zero for part in parts]).cpu().numpy()
    divisor = parts[0].divisor
    return Packed(
        matrix=matrix,
        bits=grid.bits,
        symmetric=grid.symmetric,
        group=group,
        codes=np.asarray(codes - grid.low, np.uint8),
        scale=scale.astype(np.float16 if grid.half else np.float32),
        zero=np.asarray(zero - grid.low, np.uint8),
        divisor=None if divisor is None else divisor.cpu().numpy().astype(np.float16),
    )


def _moved(rows: Tensor, packed: Packed, moments: Moments | None) -> float:
    after = torch.from_numpy(packed.matrix.to_rows(packed.decoded()).astype(np.float64))
    if moments is None:
        changed = float((after - rows).square().sum())
        return _error.share(changed, float(rows.square().sum()))
    rows, after = rows.to(moments.h.device), after.to(moments.h.device)
    groups = packed.matrix.groups
    changed = whole = 0.0
    for before, now, h in zip(rows.chunk(groups), after.chunk(groups), moments.h, strict=True):
        changed += _error.of(before, now, h)
        whole += _error.of(torch.zeros_like(before), before, h)
    return _error.share(changed, whole)
