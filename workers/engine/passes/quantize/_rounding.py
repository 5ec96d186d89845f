"""Rounds the weights of one layer at so many bits by the method that the step asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from modelpress.spec.quantize import QuantizeBits
from workers.engine.passes._matrix import Matrix
from workers.engine.passes._moments import Moments
from workers.engine.passes.quantize import _awq, _error, _gptq, _grid, _nbits, _round, _target
from workers.engine.passes.quantize._grid import Grid, Scales
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
    shift: npt.NDArray[np.float64] | None = None
    """What the bias lacks, for each row; null where it stays."""


def rounded(
    weight: npt.NDArray[np.generic],
    matrix: Matrix,
    bits: int,
    moments: Moments | None,
    step: QuantizeBits,
    *,
    shifts: bool = False,
) -> Rounded:
    """The weight at `bits` bits; rounded to nearest where there are no moments. `shifts`: the bias can make good the means of outputs."""
    rows = torch.from_numpy(matrix.to_rows(np.asarray(weight, np.float64)).copy())
    group = group_of(matrix, step)
    grid = Grid(bits, step.symmetric, step.range == "mse")
    if step.scales == "float16" and _grid.fits_half(_round.grouped(rows, group), grid):
        grid = Grid(bits, step.symmetric, step.range == "mse", half=True)
    about = moments.centred() if moments is not None and shifts else moments
    parts = [
        _part(part, about, index, grid, group, step)
        for index, part in enumerate(rows.chunk(matrix.groups))
    ]
    packed = _joined(parts, matrix, grid, group)
    if moments is None or about is None:
        changed = float((_decoded_rows(packed) - rows).square().sum())
        error = _error.share(changed, float(rows.square().sum()))
        return Rounded(packed, error, of_outputs=False, how=parts[0].how)
    error = _moved(rows, packed, about, moments)
    shift = _shift(rows, packed, moments) if shifts else None
    return Rounded(packed, error, of_outputs=True, how=parts[0].how, shift=shift)


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
    if step.sequential:
        rows = _target.fitted(rows, h, moments.cross[index], step.damping)
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


def _moved(rows: Tensor, packed: Packed, about: Moments, moments: Moments) -> float:
    """How far outputs are from those of the float network: beside a bias where moments are about means, of the whole outputs."""
    changed = whole = 0.0
    pairs = _pairs(rows, packed, moments)
    for group, (before, after) in enumerate(pairs):
        changed += _error.of_outputs(before, after, about, group)
        whole += _error.of(torch.zeros_like(before), before, moments.exact[group])
    return _error.share(changed, whole)


def _shift(rows: Tensor, packed: Packed, moments: Moments) -> npt.NDArray[np.float64]:
    """E[w x'] - E[~w x] of every row."""
    means = zip(moments.exact_mean, moments.mean, strict=True)
    parts = [
        before @ exact - after @ mean
        for (before, after), (exact, mean) in zip(_pairs(rows, packed, moments), means, strict=True)
    ]
    found: npt.NDArray[np.float64] = torch.cat(parts).cpu().numpy()
    return found


def _pairs(rows: Tensor, packed: Packed, moments: Moments) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows as they were and as they are decoded, group by group."""
    device, groups = moments.h.device, packed.matrix.groups
    after = _decoded_rows(packed).to(device)
    return zip(rows.to(device).chunk(groups), after.chunk(groups), strict=True)


def _decoded_rows(packed: Packed) -> Tensor:
    return torch.from_numpy(packed.matrix.to_rows(packed.decoded()).astype(np.float64))
