"""Convolutions as products of more than two: Tucker-2 (arXiv 1511.06530) and CP (arXiv 1412.6553)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from workers.engine.passes.rewrite import _decomposition
from workers.engine.passes.rewrite._decomposition import Decomposition, Factors, Rank, Slot

_SWEEPS, _LITTLE = 100, 1e-6
"""Of alternating least squares: at most so many, until the relative error falls by less."""
_CP_SWEEPS, _CP_LITTLE = 300, 1e-4
_RIDGE = 1e-9
_CANCELLING = 100.0
"""Norms of the components over that of their sum, from which on they are said to cancel each other."""


class Tucker(Decomposition):
    """1 x 1 to r channels, the kernel from r to s, 1 x 1 back: X ~ core x A [O, s] x B [I, r], by HOOI.

    Ranks are (s, r), in the proportion of the channels.
    """

    @property
    def ranks(self) -> Sequence[Rank]:
        outputs, inputs = self.shape[:2]
        most = max(outputs, inputs)
        return [(-(-t * outputs // most), -(-t * inputs // most)) for t in range(1, most + 1)]

    def slots(self, rank: Rank) -> tuple[Slot, ...]:
        (s, r), (outputs, inputs) = rank, self.shape[:2]
        return (
            Slot("inputs", (r, inputs, *self.ones)),
            Slot("core", (s, r, *self.kernel), self.axes),
            Slot("outputs", (outputs, s, *self.ones)),
        )

    def factors(self, rank: Rank) -> Factors:
        x = torch.from_numpy(self.weight.reshape(*self.shape[:2], -1))
        a, b, core = _hooi(x, *rank)
        product = torch.einsum("sre,os,ir->oie", core, a, b).numpy().reshape(self.shape)
        slots = self.slots(rank)
        weights = tuple(
            factor.numpy().reshape(slot.shape)
            for factor, slot in zip((b.T.contiguous(), core, a), slots, strict=True)
        )
        return Factors(slots, weights, product)

    def saves(self, rank: Rank) -> bool:
        return self._is_within(rank) and super().saves(rank)

    def _is_within(self, rank: Rank) -> bool:
        return all(k <= size for k, size in zip(rank, self.shape, strict=False))

    def at_energy(self, share: float) -> Rank:
        outputs, inputs = self.shape[:2]
        sides = self.weight.reshape(outputs, -1), self.weight.swapaxes(0, 1).reshape(inputs, -1)
        s, r = (_decomposition.enough(np.ascontiguousarray(side), share) for side in sides)
        return s, r

    def why_not(self, rank: Rank) -> str:
        if not self._is_within(rank):
            return f"ranks {rank[0]} of the outputs and {rank[1]} of the inputs are not within its {self.shape[0]} and {self.shape[1]} channels"
        return (
            f"ranks {rank[0]} of the outputs and {rank[1]} of the inputs save nothing: their layers have {self.size(rank):,} weights, "
            f"it has {self.weight.size:,}"
        )


def _hooi(x: torch.Tensor, s: int, r: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A [O, s], B [I, r] and core [s, r, k] of x [O, I, k]: each side by the singular vectors of what the other leaves."""
    b, norm, kept = _leading(x.movedim(1, 0), r), float(x.norm()), 0.0
    for _ in range(_SWEEPS):
        a = _leading(torch.einsum("oie,ir->ore", x, b), s)
        b = _leading(torch.einsum("oie,os->ise", x, a), r)
        core = torch.einsum("oie,os,ir->sre", x, a, b)
        before, kept = kept, float(core.norm())
        if kept - before <= _LITTLE * norm:
            break
    return a, b, core


def _leading(x: torch.Tensor, count: int) -> torch.Tensor:
    """The first left singular vectors of the unfolding along the first axis: [axis, count]; fewer axes than asked for are filled with zeros."""
    u = torch.linalg.svd(x.reshape(len(x), -1), full_matrices=False)[0][:, :count]
    return torch.nn.functional.pad(u, (0, count - u.shape[1]))


class Cp(Decomposition):
    """1 x 1 to R channels, each of them along each axis of the kernel, 1 x 1 back: a sum of R outer products, by alternating least squares.

    Such a sum has no best one in general, and its parts may grow while they cancel each other: a warning says so.
    """

    def __init__(
        self, weight: npt.NDArray[np.floating], generator: torch.Generator | None = None
    ) -> None:
        super().__init__(weight)
        self._seed = torch.randint(1 << 62, (), generator=generator).item()

    @property
    def limit(self) -> float:
        """The rank from which on nothing is saved."""
        return self.weight.size / sum(self.shape)

    @property
    def ranks(self) -> Sequence[Rank]:
        return [(k,) for k in range(1, max(2, math.ceil(self.limit)))]

    def slots(self, rank: Rank) -> tuple[Slot, ...]:
        (k,), (outputs, inputs) = rank, self.shape[:2]
        along = [
            Slot(name, (k, 1, *_only(self.kernel, axis)), (axis,), k)
            for axis, name in enumerate(_names(len(self.kernel)))
        ]
        first, last = (
            Slot("inputs", (k, inputs, *self.ones)),
            Slot("outputs", (outputs, k, *self.ones)),
        )
        return (first, *along, last)

    def factors(self, rank: Rank) -> Factors:
        generator = torch.Generator().manual_seed(int(self._seed))
        (outputs, inputs, *along), warning = _als(
            torch.from_numpy(self.weight.copy()), rank[0], generator
        )
        slots = self.slots(rank)
        weights = tuple(
            factor.numpy().reshape(slot.shape)
            for factor, slot in zip(
                (inputs.T.contiguous(), *(f.T.contiguous() for f in along), outputs),
                slots,
                strict=True,
            )
        )
        product = _columns([outputs, inputs, *along]).sum(1).numpy().reshape(self.shape)
        return Factors(slots, weights, product, warning)

    def at_energy(self, share: float) -> Rank:
        raise NotImplementedError("CP has no singular values; the recipe was checked")

    def why_not(self, rank: Rank) -> str:
        return f"rank {rank[0]} saves nothing: it is not below {self.limit:.1f}, its weights over the sum of its sides"


def _names(axes: int) -> tuple[str, ...]:
    return ("vertical", "horizontal") if axes == 2 else tuple(f"axis{n}" for n in range(axes))


def _only(kernel: Sequence[int], axis: int) -> tuple[int, ...]:
    """A kernel along one axis."""
    return tuple(size if n == axis else 1 for n, size in enumerate(kernel))


def _als(x: torch.Tensor, rank: int, generator: torch.Generator) -> tuple[list[torch.Tensor], str]:
    """One matrix [side, rank] for each axis of x, and a warning; '' where all went well."""
    unfolded = [x.movedim(axis, 0).reshape(size, -1) for axis, size in enumerate(x.shape)]
    factors = [_start(unfolding, rank, generator) for unfolding in unfolded]
    norm, error = max(float(x.norm()), 1e-30), math.inf
    for _ in range(_CP_SWEEPS):
        before = error
        for axis, unfolding in enumerate(unfolded):
            factors[axis], left = _solved(unfolding, factors, axis)
        error = math.sqrt(max(norm**2 + left, 0.0)) / norm
        factors = _balanced(factors)
        if before - error <= _CP_LITTLE:
            return factors, _cancelling(factors, norm)
    return factors, f"CP did not converge in {_CP_SWEEPS} sweeps (relative error {error:.3g})"


def _start(unfolding: torch.Tensor, rank: int, generator: torch.Generator) -> torch.Tensor:
    """Singular vectors, and noise where there are too few."""
    u = torch.linalg.svd(unfolding, full_matrices=False)[0][:, :rank]
    noise = torch.randn(len(u), rank - u.shape[1], generator=generator, dtype=u.dtype)
    return torch.cat([u, noise], dim=1)


def _solved(
    unfolding: torch.Tensor, factors: Sequence[torch.Tensor], axis: int
) -> tuple[torch.Tensor, float]:
    """The factor of one axis that is best with the others as they are, and ||x - sum||^2 - ||x||^2 with it."""
    others = [factor for n, factor in enumerate(factors) if n != axis]
    target = unfolding @ _columns(others)
    gram = torch.stack([factor.T @ factor for factor in others]).prod(0)
    damped = gram.clone()
    damped.diagonal().add_(_RIDGE * gram.diagonal().mean() + 1e-30)
    found = torch.cholesky_solve(target.T, torch.linalg.cholesky(damped)).T
    return found, float(((found.T @ found) * gram).sum() - 2 * (target * found).sum())


def _columns(factors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Outer products of the columns: [product of the sides, rank]."""
    found = factors[0]
    for factor in factors[1:]:
        found = (found[:, None] * factor).flatten(0, 1)
    return found


def _balanced(factors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same sum with columns of equal norm on all axes."""
    norms = torch.stack([factor.norm(dim=0).clamp_min(1e-30) for factor in factors])
    shared = norms.log().mean(0).exp()
    return [factor / norm * shared for factor, norm in zip(factors, norms, strict=True)]


def _cancelling(factors: Sequence[torch.Tensor], norm: float) -> str:
    norms = torch.stack([factor.norm(dim=0) for factor in factors]).prod(0)
    grown = float(norms.norm()) / max(norm, 1e-30)
    if grown < _CANCELLING:
        return ""
    return f"components of the CP decomposition cancel each other: together {grown:.0f} times the norm of the weight"
