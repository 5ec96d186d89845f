"""Arithmetic, comparison and logic on single elements, with numpy's broadcasting."""

from __future__ import annotations

from collections.abc import Callable

import torch

from workers.engine.graph.ops._operator import operator

Tensor = torch.Tensor

_TRAINED = (0, 1)

_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


def _exact(function: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """Run a function on a wider integer type where torch lacks it for the operands' own."""
    dtype = operands[0].dtype
    if dtype not in _WIDER:
        return function(*operands)
    return function(*(x.to(_WIDER[dtype]) for x in operands)).to(dtype)


@operator(weights=_TRAINED)
def Add(a: Tensor, b: Tensor) -> Tensor:
    return _exact(torch.add, a, b)


@operator(weights=_TRAINED)
def Sub(a: Tensor, b: Tensor) -> Tensor:
    return _exact(torch.sub, a, b)


@operator(weights=_TRAINED)
def Mul(a: Tensor, b: Tensor) -> Tensor:
    return _exact(torch.mul, a, b)


@operator(weights=_TRAINED)
def Div(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype.is_floating_point or b.dtype.is_floating_point:
        return a / b
    return _exact(_truncated_quotient, a, b)


def _truncated_quotient(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode="trunc")


@operator()
def Mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return _exact(torch.fmod if fmod else torch.remainder, a, b)


@operator()
def Pow(a: Tensor, b: Tensor) -> Tensor:
    if not a.dtype.is_floating_point and b.dtype.is_floating_point:
        return torch.pow(a.to(b.dtype), b).to(a.dtype)
    return torch.pow(a, b).to(a.dtype)


@operator()
def BitShift(a: Tensor, b: Tensor, *, direction: str) -> Tensor:
    shift = torch.bitwise_left_shift if direction == "LEFT" else torch.bitwise_right_shift
    return _exact(shift, a, b)


@operator()
def Sum(*xs: Tensor) -> Tensor:
    return _fold(torch.add, xs)


@operator()
def Mean(*xs: Tensor) -> Tensor:
    return _fold(torch.add, xs) / len(xs)


@operator()
def Max(*xs: Tensor) -> Tensor:
    return _fold(torch.maximum, xs)


@operator()
def Min(*xs: Tensor) -> Tensor:
    return _fold(torch.minimum, xs)


def _fold(function: Callable[[Tensor, Tensor], Tensor], xs: tuple[Tensor, ...]) -> Tensor:
    total = xs[0]
    for x in xs[1:]:
        total = _exact(function, total, x)
    return total


@operator()
def Neg(x: Tensor) -> Tensor:
    return torch.neg(x)


@operator()
def Abs(x: Tensor) -> Tensor:
    return x if x.dtype in _WIDER else torch.abs(x)


@operator()
def Sign(x: Tensor) -> Tensor:
    return _exact(torch.sign, x)


@operator()
def Reciprocal(x: Tensor) -> Tensor:
    return torch.reciprocal(x)


@operator()
def Sqrt(x: Tensor) -> Tensor:
    return torch.sqrt(x)


@operator()
def Exp(x: Tensor) -> Tensor:
    return torch.exp(x)


@operator()
def Log(x: Tensor) -> Tensor:
    return torch.log(x)


@operator()
def Erf(x: Tensor) -> Tensor:
    return torch.erf(x) if x.dtype.is_floating_point else torch.erf(x.float()).to(x.dtype)


@operator()
def Floor(x: Tensor) -> Tensor:
    return torch.floor(x)


@operator()
def Ceil(x: Tensor) -> Tensor:
    return torch.ceil(x)


@operator()
def Round(x: Tensor) -> Tensor:
    return torch.round(x)


@operator()
def Sin(x: Tensor) -> Tensor:
    return torch.sin(x)


@operator()
def Cos(x: Tensor) -> Tensor:
    return torch.cos(x)


@operator()
def Tan(x: Tensor) -> Tensor:
    return torch.tan(x)


@operator()
def Asin(x: Tensor) -> Tensor:
    return torch.asin(x)


@operator()
def Acos(x: Tensor) -> Tensor:
    return torch.acos(x)


@operator()
def Atan(x: Tensor) -> Tensor:
    return torch.atan(x)


@operator()
def Sinh(x: Tensor) -> Tensor:
    return torch.sinh(x)


@operator()
def Cosh(x: Tensor) -> Tensor:
    return torch.cosh(x)


@operator()
def Asinh(x: Tensor) -> Tensor:
    return torch.asinh(x)


@operator()
def Acosh(x: Tensor) -> Tensor:
    return torch.acosh(x)


@operator()
def Atanh(x: Tensor) -> Tensor:
    return torch.atanh(x)


@operator()
def IsNaN(x: Tensor) -> Tensor:
    return torch.isnan(x)


@operator()
def IsInf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    found = torch.zeros_like(x, dtype=torch.bool)
    if detect_negative:
        found = found | torch.isneginf(x)
    if detect_positive:
        found = found | torch.isposinf(x)
    return found


@operator()
def Equal(a: Tensor, b: Tensor) -> Tensor:
    return _compare(torch.eq, a, b)


@operator()
def Less(a: Tensor, b: Tensor) -> Tensor:
    return _compare(torch.lt, a, b)


@operator()
def LessOrEqual(a: Tensor, b: Tensor) -> Tensor:
    return _compare(torch.le, a, b)


@operator()
def Greater(a: Tensor, b: Tensor) -> Tensor:
    return _compare(torch.gt, a, b)


@operator()
def GreaterOrEqual(a: Tensor, b: Tensor) -> Tensor:
    return _compare(torch.ge, a, b)


def _compare(function: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
    if a.dtype in _WIDER:
        return function(a.to(_WIDER[a.dtype]), b.to(_WIDER[a.dtype]))
    return function(a, b)


@operator()
def And(a: Tensor, b: Tensor) -> Tensor:
    return torch.logical_and(a, b)


@operator()
def Or(a: Tensor, b: Tensor) -> Tensor:
    return torch.logical_or(a, b)


@operator()
def Xor(a: Tensor, b: Tensor) -> Tensor:
    return torch.logical_xor(a, b)


@operator()
def Not(x: Tensor) -> Tensor:
    return torch.logical_not(x)


@operator()
def BitwiseAnd(a: Tensor, b: Tensor) -> Tensor:
    return _exact(torch.bitwise_and, a, b)


@operator()
def BitwiseOr(a: Tensor, b: Tensor) -> Tensor:
    return _exact(torch.bitwise_or, a, b)


@operator()
def BitwiseXor(a: Tensor, b: Tensor) -> Tensor:
    return _exact(torch.bitwise_xor, a, b)


@operator()
def BitwiseNot(x: Tensor) -> Tensor:
    return _exact(torch.bitwise_not, x)


@operator()
def Where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition, x, y)


@operator()
def Clip(x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:
    if x.dtype in _WIDER:
        bounds = [bound if bound is None else bound.to(_WIDER[x.dtype]) for bound in (min, max)]
        return Clip(x.to(_WIDER[x.dtype]), *bounds).to(x.dtype)
    x = x if min is None else torch.maximum(x, min)
    return x if max is None else torch.minimum(x, max)
