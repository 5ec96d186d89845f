"""Nonlinearities."""

from __future__ import annotations

import torch
from torch.nn import functional

from workers.engine.graph.ops._operator import operator

Tensor = torch.Tensor


@operator()
def Relu(x: Tensor) -> Tensor:
    return functional.relu(x)


@operator()
def LeakyRelu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return functional.leaky_relu(x, alpha)


@operator(weights=(1,))
def PRelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@operator()
def Elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.elu(x, alpha)


@operator()
def Celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.celu(x, alpha)


@operator()
def Selu(
    x: Tensor, *, alpha: float = 1.6732631921768188, gamma: float = 1.0507010221481323
) -> Tensor:
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


@operator()
def Sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@operator()
def HardSigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


@operator()
def HardSwish(x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6 + 0.5, 0, 1)


@operator()
def Swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(alpha * x)


@operator()
def SwiGLU(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    return a * torch.sigmoid(alpha * a) * b


@operator()
def Tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


@operator()
def Gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return functional.gelu(x, approximate=approximate)


@operator()
def Mish(x: Tensor) -> Tensor:
    return functional.mish(x)


@operator()
def Softplus(x: Tensor) -> Tensor:
    return functional.softplus(x)


@operator()
def Softsign(x: Tensor) -> Tensor:
    return functional.softsign(x)


@operator()
def ThresholdedRelu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


@operator()
def Shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    zero = torch.zeros_like(x)
    shrunk = torch.where(x > lambd, x - bias, zero)
    return torch.where(x < -lambd, x + bias, shrunk).to(x.dtype)


@operator()
def Softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


@operator()
def LogSoftmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


@operator()
def Hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    first = torch.argmax(x, axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1)
