"""A network as a seed and one bit for each weight, in a file, and back.

The file is an .npz of numpy, without pickled objects. With the network's nodes (of the artifact, or of the model it came from; their
weights are not read) it gives the artifact's weights back, bit for bit:

    format        1
    seed          of numpy's PCG64, from which initialize.fresh draws the weights
    weights       'random' or 'signed_constant'
    rescale       whether what is kept of a layer is multiplied by its weights over its kept weights
    layers        names of the masked weights
    mask/I        kept weights of layer I, packed eight to a byte, in C order
    statistic/X   running statistics of normalization, which no seed gives
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from workers.engine import initialize
from workers.engine.graph import Graph, roles
from workers.engine.passes import _weights

FORMAT = 1

Array: TypeAlias = npt.NDArray[np.floating]
Mask: TypeAlias = npt.NDArray[np.bool_]
"""True where a weight is kept."""


@dataclass(frozen=True)
class Drawn:
    """Weights as a seed gives them."""

    seed: int
    signed_constant: bool

    def graph(self, of: Graph) -> Graph:
        """A copy of a network with these weights, all of them kept."""
        copy = of.clone()
        _weights.turn(copy)
        return initialize.fresh(copy, np.random.default_rng(self.seed))

    def weight(self, drawn: Graph, name: str) -> Array:
        """One weight of a network that `graph` made, before the mask."""
        weight: Array = drawn.weight(name)
        if not self.signed_constant:
            return weight
        constant = weight.astype(np.float64).std()
        signed: Array = np.where(weight < 0, -constant, constant).astype(weight.dtype)
        return signed


@dataclass(frozen=True)
class Seeded:
    """A network without its nodes."""

    drawn: Drawn
    rescale: bool
    masks: Mapping[str, Mask]
    statistics: Mapping[str, Array] = field(default_factory=dict)

    def graph(self, of: Graph) -> Graph:
        """A copy of a network with the weights that this stands for."""
        result = self.drawn.graph(of)
        for name, mask in self.masks.items():
            result.set_weight(name, self._masked(self.drawn.weight(result, name), mask))
        for name, statistic in self.statistics.items():
            result.set_weight(name, statistic)
        return result

    def _masked(self, weight: Array, mask: Mask) -> Array:
        factor = scale(mask) if self.rescale else 1.0
        kept = (weight.astype(np.float32) * np.float32(factor)).astype(weight.dtype)
        return np.where(mask, kept, np.zeros((), weight.dtype))

    @property
    def bits(self) -> int:
        """One for each masked weight."""
        return sum(mask.size for mask in self.masks.values())

    @property
    def entropy_bits(self) -> float:
        """What the masks weigh to a coder that knows the fraction kept of each layer: the sum of n H(p)."""
        return sum(mask.size * _entropy(float(mask.mean())) for mask in self.masks.values())


def scale(mask: Mask) -> float:
    """What dynamic weight rescaling multiplies by: weights over kept weights (Zhou et al. 2019, section 5)."""
    return mask.size / max(int(mask.sum()), 1)


def write(path: Path, seeded: Seeded) -> None:
    """Writes the file; the same network gives the same bytes."""
    arrays: dict[str, Any] = {
        "format": np.uint32(FORMAT),
        "seed": np.uint64(seeded.drawn.seed),
        "weights": np.array("signed_constant" if seeded.drawn.signed_constant else "random"),
        "rescale": np.bool_(seeded.rescale),
        "layers": np.array(list(seeded.masks)),
    }
    for index, mask in enumerate(seeded.masks.values()):
        arrays[f"mask/{index}"] = np.packbits(mask)
    for name, statistic in seeded.statistics.items():
        arrays[f"statistic/{name}"] = statistic
    np.savez(path, **arrays)


def read(path: Path, of: Graph) -> Seeded:
    """Reads the file of a network with these nodes.

    Raises:
        ValueError: it is no such file, or of another network.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if arrays.get("format") != FORMAT:
        raise ValueError(f"{path.name} is of format {arrays.get('format')}, not {FORMAT}")
    turned = of.clone()
    _weights.turn(turned)
    masks = {}
    for index, name in enumerate(map(str, arrays["layers"])):
        if name not in turned.initializers:
            raise ValueError(f"the network has no weight '{name}', which {path.name} masks")
        shape = turned.weight(name).shape
        bits = np.unpackbits(arrays[f"mask/{index}"], count=math.prod(shape))
        masks[name] = bits.astype(np.bool_).reshape(shape)
    return Seeded(
        Drawn(int(arrays["seed"]), str(arrays["weights"]) == "signed_constant"),
        bool(arrays["rescale"]),
        masks,
        {n.removeprefix("statistic/"): a for n, a in arrays.items() if n.startswith("statistic/")},
    )


def statistics(graph: Graph) -> dict[str, Array]:
    """The running means and variances of a graph."""
    return {
        name: graph.weight(name)
        for name, value in graph.initializers.items()
        if roles.role(value) is roles.Role.STATISTIC
    }


def differences(one: Graph, other: Graph) -> list[str]:
    """Names of the initializers that are not the same bits in both."""
    names = dict.fromkeys([*one.initializers, *other.initializers])
    return [name for name in names if _bytes(one, name) != _bytes(other, name)]


def _bytes(graph: Graph, name: str) -> bytes | None:
    return graph.weight(name).tobytes() if name in graph.initializers else None


def _entropy(p: float) -> float:
    """Of a coin that falls to one side with probability p, in bits."""
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)
