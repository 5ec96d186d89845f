"""GPTQ: what rounding one input does wrong, the inputs after it make good (Frantar et al. 2023, arXiv 2210.17323, algorithm 1).

    q_j = quant(w_j)        w_k -= (w_j - q_j) * U_jk / U_jj   for k > j        U = Cholesky(inv(H))^T,  H = X X^T + damping * mean(diag H) * I

Each row of W is rounded so that ||W X - Q X|| is small. Differs in: a weight that is exactly zero stays zero, and later inputs make that
good too (as SparseGPT does); the ends of a range may be searched with errors weighted by diag H.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workers.engine.passes.quantize import _grid
from workers.engine.passes.quantize._grid import Grid, Scales

Tensor = torch.Tensor
_BLOCK = 128
"""Columns after which the others are updated at once."""


@dataclass(frozen=True)
class Asked:
    """How to round."""

    grid: Grid
    group: int
    """Columns that share a scale."""
    damping: float
    by_size: bool
    """Whether columns are rounded in the order of diag H, the largest first; scales are then those of the weights as they were."""


def solve(w: Tensor, h: Tensor, asked: Asked) -> tuple[Tensor, Scales]:
    """Codes [rows, columns], and scales [rows, groups].

    Args:
        w: Weights [rows, columns], float64.
        h: X X^T [columns, columns], float64.
        asked: How to round.
    """
    order = _order(h, asked)
    factor = _factor(h[order][:, order], asked.damping)
    solver = _Solver(w[:, order].clone(), order, factor, asked, h.diagonal())
    if asked.by_size or asked.group >= w.shape[1]:
        solver.fit_all(w)
    codes = torch.empty_like(w)
    codes[:, order] = solver.run()
    return codes, solver.scales


def _order(h: Tensor, asked: Asked) -> Tensor:
    if asked.by_size:
        return torch.argsort(h.diagonal(), descending=True, stable=True)
    return torch.arange(len(h), device=h.device)


def _factor(h: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped h; inputs that never were anything count nothing."""
    h = h.clone()
    diagonal = h.diagonal()
    dead = diagonal == 0
    mean = diagonal.mean()
    diagonal[dead] = 1.0
    diagonal += damping * (mean if mean > 0 else 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper


class _Solver:
    """The state of the algorithm. Columns are in the order in which they are rounded."""

    def __init__(self, w: Tensor, order: Tensor, factor: Tensor, asked: Asked, worth: Tensor):
        self._w, self._order, self._factor, self._asked = w, order, factor, asked
        self._pruned = w == 0
        self._worth = worth
        groups = -(-w.shape[1] // asked.group)
        self.scales = Scales(w.new_ones(len(w), groups), w.new_zeros(len(w), groups))

    def fit_all(self, w: Tensor) -> None:
        """Scales of all groups from weights [rows, columns] as they were, in their own order."""
        for index in range(self.scales.scale.shape[1]):
            self._fit(index, w)

    def run(self) -> Tensor:
        """The codes [rows, columns]."""
        columns, size = self._w.shape[1], self._block()
        codes = torch.empty_like(self._w)
        for start in range(0, columns, size):
            end = min(start + size, columns)
            codes[:, start:end], errors = self._round_block(start, end)
            self._w[:, end:] -= errors @ self._factor[start:end, end:]
        return codes

    def _block(self) -> int:
        """Whole groups, so that a group's scale sees all that was made good before."""
        group = min(self._asked.group, self._w.shape[1])
        return group * max(1, _BLOCK // group)

    def _round_block(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        w, factor = self._w[:, start:end], self._factor[start:end, start:end]
        codes, errors = torch.empty_like(w), torch.empty_like(w)
        grows = not self._asked.by_size and self._asked.group < self._w.shape[1]
        for j in range(end - start):
            if grows and (start + j) % self._asked.group == 0:
                self._fit((start + j) // self._asked.group, self._w)
            codes[:, j], value = self._rounded(w[:, j], start + j)
            errors[:, j] = (w[:, j] - value) / factor[j, j]
            w[:, j + 1 :] -= errors[:, j : j + 1] * factor[j : j + 1, j + 1 :]
        return codes, errors

    def _fit(self, index: int, w: Tensor) -> None:
        columns = slice(index * self._asked.group, (index + 1) * self._asked.group)
        found = _grid.fit(w[:, columns], self._worth[columns], self._asked.grid)
        self.scales.scale[:, index], self.scales.zero[:, index] = found.scale, found.zero

    def _rounded(self, column: Tensor, place: int) -> tuple[Tensor, Tensor]:
        group = int(self._order[place]) // self._asked.group
        scales = Scales(self.scales.scale[:, group], self.scales.zero[:, group])
        wanted = torch.where(self._pruned[:, place], 0.0, column).unsqueeze(-1)
        codes = _grid.encode(wanted, scales, self._asked.grid)
        return codes[:, 0], _grid.decode(codes, scales)[:, 0]
