"""A weight as a product of thinner ones, at any rank. Weights are [outputs, inputs, *kernel]; a matrix has no kernel.

A matrix [M, N] of rank K has K * (M + N) weights, fewer than it had where K < M * N / (M + N).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]
Rank = tuple[int, ...]
"""One number, or one for each side of a Tucker decomposition."""


@dataclass(frozen=True)
class Slot:
    """A layer of the row that takes the place of one."""

    name: str
    """What its weight and node are called by, after the layer's name."""
    shape: tuple[int, ...]
    """[outputs, inputs of a group, *kernel]."""
    axes: tuple[int, ...] = ()
    """Axes of space that it walks along: with the layer's strides, padding and dilations."""
    group: int = 1

    @property
    def weights(self) -> int:
        """How many it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Factors:
    """A decomposition at one rank."""

    slots: tuple[Slot, ...]
    """In the order in which they run."""
    weights: tuple[Array, ...]
    product: Array
    """What they multiply to: [outputs, inputs, *kernel]."""
    warning: str = ""


class Decomposition(ABC):
    """All ranks of one weight."""

    def __init__(self, weight: npt.NDArray[np.floating]) -> None:
        self.weight: Array = np.asarray(weight, np.float64)
        self.shape: tuple[int, ...] = self.weight.shape
        self.kernel: tuple[int, ...] = self.shape[2:]

    @property
    @abstractmethod
    def ranks(self) -> Sequence[Rank]:
        """Those there are, the smallest first, also where they save nothing."""

    @abstractmethod
    def slots(self, rank: Rank) -> tuple[Slot, ...]:
        """The layers at a rank."""

    @abstractmethod
    def factors(self, rank: Rank) -> Factors:
        """Those layers with their weights."""

    @abstractmethod
    def at_energy(self, share: float) -> Rank:
        """The smallest rank that keeps this share of the squared singular values."""

    @abstractmethod
    def why_not(self, rank: Rank) -> str:
        """That a rank saves nothing, with the bound that it breaks."""

    def size(self, rank: Rank) -> int:
        """Weights of all layers at a rank."""
        return sum(slot.weights for slot in self.slots(rank))

    def saves(self, rank: Rank) -> bool:
        """Whether the layers have fewer weights than the one."""
        return self.size(rank) < self.weight.size

    def named(self, rank: int | Rank) -> Rank:
        """What the recipe calls a rank, as one of this decomposition.

        Raises:
            ValueError: it has more numbers, or fewer.
        """
        given = (rank,) if isinstance(rank, int) else rank
        wanted = len(self.ranks[0])
        if len(given) != wanted:
            raise ValueError(
                f"has {wanted} rank{'s' if wanted > 1 else ''}, {len(given)} given: {list(given)}"
            )
        return given

    def at_ratio(self, ratio: float) -> Rank:
        """The largest rank of so many times fewer weights; the smallest where none is."""
        fitting = [rank for rank in self.ranks if self.size(rank) * ratio <= self.weight.size]
        return fitting[-1] if fitting else self.ranks[0]

    @property
    def axes(self) -> tuple[int, ...]:
        """All axes of space."""
        return tuple(range(len(self.kernel)))

    @property
    def ones(self) -> tuple[int, ...]:
        """The kernel of a pointwise convolution."""
        return (1,) * len(self.kernel)


class Svd(Decomposition):
    """A matrix [M, N] by its largest singular values, the best of each rank in the Frobenius norm (Eckart, Young 1936).

    root: [N, N] with root root^T = C, the second moments of what the columns are multiplied by. The singular values are then those of W root,
    and what is least is the error of the outputs (arXiv 2403.07378). Null: the identity.
    """

    def __init__(self, weight: npt.NDArray[np.floating], root: torch.Tensor | None = None) -> None:
        super().__init__(weight)
        matrix = torch.from_numpy(self.matrix())
        self.root = root
        self.m, self.n = matrix.shape
        self.u, self.sigma, self.v = torch.linalg.svd(
            matrix if root is None else matrix @ root, full_matrices=False
        )

    def matrix(self) -> Array:
        """[M, N]."""
        return self.weight.reshape(self.shape[0], -1)

    def tensor(self, matrix: Array) -> Array:
        """The weight that a matrix [M, N] is."""
        return matrix.reshape(self.shape)

    @property
    def limit(self) -> float:
        """The rank from which on nothing is saved."""
        return self.m * self.n / (self.m + self.n)

    @property
    def ranks(self) -> Sequence[Rank]:
        return [(k,) for k in range(1, len(self.sigma) + 1)]

    def slots(self, rank: Rank) -> tuple[Slot, ...]:
        (k,), (outputs, inputs) = rank, self.shape[:2]
        return (
            Slot("basis", (k, inputs, *self.kernel), self.axes),
            Slot("mix", (outputs, k, *self.ones)),
        )

    def factors(self, rank: Rank) -> Factors:
        left, right = self.split(rank[0])
        slots = self.slots(rank)
        weights = right.reshape(slots[0].shape), left.reshape(slots[1].shape)
        return Factors(slots, weights, self.tensor(left @ right))

    def split(self, k: int) -> tuple[Array, Array]:
        """[M, K] and [K, N], each with the root of the singular values."""
        scale = self.sigma[:k].sqrt()
        left, right = self.u[:, :k] * scale, scale[:, None] * self.v[:k]
        if self.root is not None:
            right = torch.linalg.solve_triangular(self.root, right, upper=False, left=False)
        return left.numpy(), right.numpy()

    def dropped(self, k: int) -> float:
        """Norm of what is lost at a rank: of the weight, or of the outputs where there is a root."""
        return float(self.sigma[k:].square().sum().sqrt())

    def at_energy(self, share: float) -> Rank:
        return (_enough(self.sigma.square(), share),)

    def why_not(self, rank: Rank) -> str:
        return (
            f"K = {rank[0]} saves nothing: it is not below MN/(M+N) = {self.limit:.1f} of its matrix "
            f"{self.m:,} x {self.n:,}"
        )


class Spatial(Svd):
    """kh x 1, then 1 x kw (arXiv 1405.3866, scheme 2): the matrix [O * kw, I * kh]."""

    def matrix(self) -> Array:
        outputs, inputs, height, width = self.shape
        return self.weight.transpose(0, 3, 1, 2).reshape(outputs * width, inputs * height)

    def tensor(self, matrix: Array) -> Array:
        outputs, inputs, height, width = self.shape
        return matrix.reshape(outputs, width, inputs, height).transpose(0, 2, 3, 1)

    def slots(self, rank: Rank) -> tuple[Slot, ...]:
        (k,), (outputs, inputs, height, width) = rank, self.shape
        return (
            Slot("vertical", (k, inputs, height, 1), (0,)),
            Slot("horizontal", (outputs, k, 1, width), (1,)),
        )

    def factors(self, rank: Rank) -> Factors:
        left, right = self.split(rank[0])
        slots, (outputs, width) = self.slots(rank), (self.shape[0], self.shape[3])
        wide = left.reshape(outputs, width, -1).transpose(0, 2, 1)
        weights = right.reshape(slots[0].shape), wide.reshape(slots[1].shape)
        return Factors(slots, weights, self.tensor(left @ right))


class Depthwise(Decomposition):
    """Each input channel's filters [O, k * k] by their largest singular values: that many depthwise filters of it, then 1 x 1.

    Weights of rank 1 over those of the convolution: 1/O + 1/k^2.
    """

    def __init__(self, weight: npt.NDArray[np.floating]) -> None:
        super().__init__(weight)
        outputs, inputs = self.shape[:2]
        flat = self.weight.reshape(outputs, inputs, -1).transpose(1, 0, 2)
        found = torch.linalg.svd(torch.from_numpy(flat.copy()), full_matrices=False)
        self.u, self.sigma, self.v = (part.numpy() for part in found)

    @property
    def limit(self) -> float:
        """Filters of each channel from which on nothing is saved."""
        outputs, places = self.shape[0], math.prod(self.kernel)
        return outputs * places / (outputs + places)

    @property
    def ranks(self) -> Sequence[Rank]:
        return [(k,) for k in range(1, self.sigma.shape[1] + 1)]

    def slots(self, rank: Rank) -> tuple[Slot, ...]:
        outputs, inputs = self.shape[:2]
        channels = inputs * rank[0]
        return (
            Slot("depthwise", (channels, 1, *self.kernel), self.axes, inputs),
            Slot("pointwise", (outputs, channels, *self.ones)),
        )

    def factors(self, rank: Rank) -> Factors:
        (k,), slots = rank, self.slots(rank)
        scale = np.sqrt(self.sigma[:, :k])
        left, right = self.u[:, :, :k] * scale[:, None], scale[:, :, None] * self.v[:, :k]
        weights = right.reshape(slots[0].shape), left.transpose(1, 0, 2).reshape(slots[1].shape)
        return Factors(slots, weights, (left @ right).transpose(1, 0, 2).reshape(self.shape))

    def at_energy(self, share: float) -> Rank:
        return (_enough(torch.from_numpy(np.square(self.sigma).sum(0)), share),)

    def why_not(self, rank: Rank) -> str:
        outputs, places = self.shape[0], math.prod(self.kernel)
        return (
            f"{rank[0]} filters of each channel save nothing: not below Ok^2/(O+k^2) = {self.limit:.1f} with O = {outputs}, "
            f"k^2 = {places}"
        )


def _enough(energies: torch.Tensor, share: float) -> int:
    """How many of the largest have this share of the sum; at least one."""
    sums = energies.cumsum(0)
    return min(1 + int((sums < share * sums[-1]).sum()), len(sums))


def enough(unfolding: Array, share: float) -> int:
    """The rank at which a matrix keeps this share of its squared singular values."""
    return _enough(torch.linalg.svdvals(torch.from_numpy(unfolding)).square(), share)
