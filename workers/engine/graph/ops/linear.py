"""Matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from workers.engine.graph.ops._operator import Operand, operator

Tensor = torch.Tensor


def product_macs(operands: Sequence[Operand], results: Sequence[Tensor]) -> int:
    """Of a matrix product, over the last axis of its first operand."""
    a = operands[0]
    assert a is not None
    return results[0].numel() * int(a.shape[-1])


def gemm_macs(operands: Sequence[Operand], results: Sequence[Tensor]) -> int:
    """Of a Gemm, whichever operand is transposed."""
    a = operands[0]
    assert a is not None
    rows = int(results[0].shape[0])
    return results[0].numel() * (a.numel() // max(rows, 1))


def _einsum_macs(operands: Sequence[Operand], results: Sequence[Tensor]) -> int:
    """Of two operands sharing sizes with the result: the square root law of a product of three."""
    if len(operands) != 2 or operands[0] is None or operands[1] is None:
        return 0
    sizes = operands[0].numel() * operands[1].numel() * results[0].numel()
    return math.isqrt(sizes)


@operator(weights=(0, 1), macs=product_macs)
def MatMul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator(weights=(0, 1, 2), macs=gemm_macs)
def Gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    y = (a.t() if transA else a) @ (b.t() if transB else b)
    y = y if alpha == 1 else y * alpha
    if c is None:
        return y
    return y + (c if beta == 1 else c * beta)


@operator(weights=(0, 1), macs=_einsum_macs)
def Einsum(*xs: Tensor, equation: str) -> Tensor:
    result: Tensor = torch.einsum(equation, *xs)
    return result


@operator(macs=product_macs)
def MatMulInteger(
    a: Tensor,
    b: Tensor,
    a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None,
) -> Tensor:
    """Exact in float64: sums of int8 products stay far below 2^53."""
    a64, b64 = a.double(), b.double()
    if a_zero_point is not None:
        zero = a_zero_point.double()
        a64 = a64 - (zero.unsqueeze(-1) if zero.dim() == 1 and zero.numel() > 1 else zero)
    if b_zero_point is not None:
        b64 = b64 - b_zero_point.double()
    return torch.matmul(a64, b64).to(torch.int32)


@operator()
def Det(x: Tensor) -> Tensor:
    return torch.det(x)
