"""Who runs the file, and what it therefore wants as integers.

cpu       ONNX Runtime: uint8 activations with a zero point, int32 biases, whole chains of nodes on codes; a Relu disappears in them.
tensorrt  int8 activations and weights around zero, float biases; QuantizeLinear only where a layer, a sum or a pooling reads.
mobile    what integer-only delegates take: as cpu, but every result is stored as codes, and a matrix has one scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelpress.spec.quantize.int8 import Target as Runner

_JOINERS = frozenset(
    ["Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid"]
)
_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Rules:
    """What one target wants."""

    kernels: frozenset[str] = _LAYERS
    """Layers that multiply integers; of others only the stored weight gets smaller."""
    joiners: frozenset[str] = _JOINERS
    """Operators that run on codes with a scale of their own where all they read is codes."""
    ends: frozenset[str] = frozenset({"Conv"})
    """Kernels whose result must be codes again; that of others is where a reader wants them."""
    per_channel: frozenset[str] = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
    """Layers whose weights may have a scale for each channel."""
    symmetric: bool = False
    """Activations are int8 around zero, instead of uint8 with a zero point."""
    integer_biases: bool = True
    cuts: bool = True
    """A Relu or Clip behind a kernel disappears in the bounds of its codes."""
    eager: bool = False
    """Joiners run on codes even where nobody behind them wants any."""
    by_cpu: bool = True
    """This CPU decides which products are worth it."""


OF: Mapping[Runner, Rules] = {
    "cpu": Rules(),
    "tensorrt": Rules(
        kernels=_LAYERS | {"ConvTranspose"},
        joiners=frozenset({"Add", "AveragePool", "GlobalAveragePool"}),
        ends=frozenset(),
        symmetric=True,
        integer_biases=False,
        cuts=False,
        by_cpu=False,
    ),
    "mobile": Rules(
        joiners=_JOINERS | {"Softmax", "Sub", "Tanh"},
        ends=_LAYERS,
        per_channel=frozenset({"Conv", "ConvTranspose"}),
        eager=True,
        by_cpu=False,
    ),
}
