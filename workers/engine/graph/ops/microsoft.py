"""Operators of com.microsoft that exporters and ONNX Runtime's optimizer write into files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from workers.engine.errors import Unsupported
from workers.engine.graph.ops import convolution, linear, normalization
from workers.engine.graph.ops._operator import Call, Operand, operator

Tensor = torch.Tensor

DOMAIN = "com.microsoft"


def _product_macs(operands: Sequence[Operand], results: Sequence[Tensor]) -> int:
    a = operands[0]
    assert a is not None
    return results[0].numel() * int(a.shape[-1])


@operator(domain=DOMAIN)
def Gelu(x: Tensor) -> Tensor:
    return functional.gelu(x)


@operator(domain=DOMAIN)
def QuickGelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    return x * torch.sigmoid(alpha * x)


@operator(domain=DOMAIN, weights=(1,))
def BiasGelu(x: Tensor, b: Tensor) -> Tensor:
    return functional.gelu(x + b)


@operator(domain=DOMAIN, weights=(1,))
def FastGelu(x: Tensor, b: Tensor | None = None) -> Tensor:
    return functional.gelu(x if b is None else x + b, approximate="tanh")


@operator(domain=DOMAIN, weights=(0, 1), macs=_product_macs)
def FusedMatMul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    if transBatchA or transBatchB:
        raise Unsupported("FusedMatMul with transBatchA or transBatchB")
    a = a.transpose(-1, -2) if transA and a.dim() > 1 else a
    b = b.transpose(-1, -2) if transB and b.dim() > 1 else b
    return torch.matmul(a, b) * alpha


_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "": lambda x: x,
    "Relu": functional.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "LeakyRelu": functional.leaky_relu,
    "Clip": torch.clamp,
    "HardSigmoid": lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1),
}


def _activated(x: Tensor, activation: str, parameters: Sequence[float]) -> Tensor:
    if activation not in _ACTIVATIONS:
        raise Unsupported(f"an operator fused with activation '{activation}'")
    return _ACTIVATIONS[activation](x, *parameters)


@operator(domain=DOMAIN, weights=(1, 2), macs=convolution.macs)
def FusedConv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] = (),
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Conv, plus `z`, through an activation."""
    y: Tensor = convolution.Conv(
        x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides
    )
    return _activated(y if z is None else y + z, activation, activation_params)


@operator(domain=DOMAIN, weights=(0, 1, 2), macs=linear.gemm_macs)
def FusedGemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    y = linear.Gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    given = [p for p in (activation_alpha, activation_beta) if p is not None]
    return _activated(y, activation, given)


@operator(domain=DOMAIN, takes_call=True, weights=(2, 3, 4))
def SkipLayerNormalization(
    call: Call,
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    b: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
) -> tuple[Tensor | None, ...]:
    """LayerNormalization of x + skip + bias; that sum is the fourth output."""
    total = x + skip if bias is None else x + skip + bias
    y = functional.layer_norm(total, [total.shape[-1]], scale, b, epsilon)
    return (y, None, None, total)[: call.outputs]


@operator(weights=(1,))
def SimplifiedLayerNormalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """RMSNormalization by the name it had before ONNX took it; it stands in the standard domain."""
    return normalization.RMSNormalization(x, scale, axis=axis, epsilon=epsilon)


@operator(domain=DOMAIN, takes_call=True, weights=(2, 3))
def SkipSimplifiedLayerNormalization(
    call: Call,
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
) -> tuple[Tensor | None, ...]:
    total = x + skip if bias is None else x + skip + bias
    y = SimplifiedLayerNormalization(total, scale, epsilon=epsilon)
    return (y, None, None, total)[: call.outputs]
