"""Shapes as values, constants and ranges."""

from __future__ import annotations

import math

import torch

from workers.engine.graph import tensors
from workers.engine.graph.ops._operator import Call, operator

Tensor = torch.Tensor

HOST_ELEMENTS = 4096
"""Results made of host operands alone stay on the host up to this many elements."""


def _home(call: Call, elements: int) -> torch.device:
    return call.device if elements > HOST_ELEMENTS else torch.device("cpu")


@operator()
def Constant(*, value: Tensor) -> Tensor:
    """Only where a graph's output is a constant: all others become initializers at load."""
    return value


@operator()
def Shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@operator()
def Size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator(host=(0,), takes_call=True)
def ConstantOfShape(call: Call, shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    sizes = tensors.ints(shape)
    fill = torch.zeros(1) if value is None else value
    device = _home(call, math.prod(sizes))
    return torch.full(sizes, fill.reshape(-1)[0].item(), dtype=fill.dtype, device=device)


@operator(host=(0, 1, 2), takes_call=True)
def Range(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    first, last, step = (x.reshape(-1)[0].item() for x in (start, limit, delta))
    count = max(0, math.ceil((last - first) / step))
    place = torch.arange(count, device=_home(call, count))
    if start.dtype.is_floating_point:
        return (first + place.double() * step).to(start.dtype)
    return (int(first) + place * int(step)).to(start.dtype)


@operator()
def EyeLike(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    wanted = x.dtype if dtype is None else tensors.dtype_of(dtype)
    rows, columns = x.shape
    down = torch.arange(rows, device=x.device).unsqueeze(1)
    return (torch.arange(columns, device=x.device) == down + k).to(wanted)
