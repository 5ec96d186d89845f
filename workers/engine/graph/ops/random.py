"""Random numbers, from torch's generator: seeded with it, not by the node's own seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workers.engine.graph import tensors
from workers.engine.graph.ops._operator import Call, operator

Tensor = torch.Tensor


@operator(takes_call=True)
def RandomNormal(
    call: Call,
    *,
    shape: Sequence[int],
    dtype: int = 1,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Tensor:
    made = torch.empty(list(shape), dtype=tensors.dtype_of(dtype), device=call.device)
    return made.normal_(mean, scale)


@operator()
def RandomNormalLike(
    x: Tensor,
    *,
    dtype: int | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Tensor:
    wanted = x.dtype if dtype is None else tensors.dtype_of(dtype)
    return torch.empty_like(x, dtype=wanted).normal_(mean, scale)


@operator(takes_call=True)
def RandomUniform(
    call: Call,
    *,
    shape: Sequence[int],
    dtype: int = 1,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> Tensor:
    made = torch.empty(list(shape), dtype=tensors.dtype_of(dtype), device=call.device)
    return made.uniform_(low, high)


@operator()
def RandomUniformLike(
    x: Tensor,
    *,
    dtype: int | None = None,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> Tensor:
    wanted = x.dtype if dtype is None else tensors.dtype_of(dtype)
    return torch.empty_like(x, dtype=wanted).uniform_(low, high)


@operator()
def Bernoulli(x: Tensor, *, dtype: int | None = None, seed: float | None = None) -> Tensor:
    wanted = x.dtype if dtype is None else tensors.dtype_of(dtype)
    return torch.bernoulli(x).to(wanted)
