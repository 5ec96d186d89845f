"""Normalisation by statistics of a batch, a layer, a group or a neighbourhood, and dropout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from workers.engine.graph.ops._operator import Call, operator

Tensor = torch.Tensor


@operator(takes_call=True, weights=(1, 2), statistics=(3, 4))
def BatchNormalization(
    call: Call,
    x: Tensor,
    scale: Tensor,
    b: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """In training the batch's own statistics are used, and the running ones updated in place.

    Statistics with a gradient are no running ones: the network computes them, and means them (weight standardization does).
    """
    if mean.requires_grad or var.requires_grad:
        return _standardized(x, scale, b, mean, var, epsilon)
    if call.training:
        y = functional.batch_norm(x, mean, var, scale, b, True, 1 - momentum, epsilon)
        return (y, mean, var) if call.outputs == 3 else y
    if not training_mode:
        return functional.batch_norm(x, mean, var, scale, b, False, 0.0, epsilon)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    now_mean, now_var = x.mean(axes), x.var(axes, unbiased=False)
    y = functional.batch_norm(x, now_mean, now_var, scale, b, False, 0.0, epsilon)
    if call.outputs == 1:
        return y
    return (
        y,
        mean * momentum + now_mean * (1 - momentum),
        var * momentum + now_var * (1 - momentum),
    )


def _standardized(
    x: Tensor, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor, epsilon: float
) -> Tensor:
    """A batch_norm with gradients for its statistics, which torch's has not. x: [batch, channels, ...]; the others: [channels]."""
    shape = (-1, *(1 for _ in x.shape[2:]))
    gain = scale * torch.rsqrt(var + epsilon)
    return (x - mean.reshape(shape)) * gain.reshape(shape) + b.reshape(shape)


@operator(weights=(1, 2))
def InstanceNormalization(x: Tensor, scale: Tensor, b: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Without the check of torch's wrapper, which refuses a single value, which is its mean: the answer is the bias."""
    return torch.instance_norm(x, scale, b, None, None, True, 0.0, epsilon, False)


@operator(weights=(1, 2), takes_call=True)
def LayerNormalization(
    call: Call,
    x: Tensor,
    scale: Tensor,
    b: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    axis = axis % x.dim()
    if call.outputs == 1 and tuple(scale.shape) == tuple(x.shape[axis:]):
        return functional.layer_norm(x, list(x.shape[axis:]), scale, b, epsilon)
    axes = tuple(range(axis, x.dim()))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    mean = wide.mean(axes, keepdim=True)
    inverse = torch.rsqrt((wide - mean).square().mean(axes, keepdim=True) + epsilon)
    y = ((wide - mean) * inverse).to(x.dtype) * scale
    y = y if b is None else y + b
    return (y, mean, inverse)[: call.outputs] if call.outputs > 1 else y


@operator(weights=(1,))
def RMSNormalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    axes = tuple(range(axis % x.dim(), x.dim()))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    inverse = torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)
    return (wide * inverse).to(x.dtype) * scale


@operator(weights=(1, 2))
def GroupNormalization(
    x: Tensor,
    scale: Tensor,
    b: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """Without the check of torch's wrapper, which refuses groups of a single value, which is its mean: the answer is the bias."""
    return torch.group_norm(x, num_groups, scale, b, epsilon)


@operator()
def LRN(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    before, after = (size - 1) // 2, size // 2
    squares = functional.pad(x.square(), [0, 0] * (x.dim() - 2) + [before, after])
    total = squares.unfold(1, size, 1).sum(-1)
    return x / (bias + alpha / size * total) ** beta


@operator()
def LpNormalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    norm = x.abs().sum(axis, keepdim=True) if p == 1 else x.square().sum(axis, keepdim=True).sqrt()
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@operator()
def MeanVarianceNormalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    centred = x - x.mean(tuple(axes), keepdim=True)
    return centred / (centred.square().mean(tuple(axes), keepdim=True).sqrt() + 1e-9)


@operator(takes_call=True, host=(1, 2))
def Dropout(
    call: Call,
    x: Tensor,
    ratio: Tensor | None = None,
    training_mode: Tensor | None = None,
    *,
    seed: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Active in training only; the mask of an idle dropout is all true."""
    share = 0.5 if ratio is None else float(ratio)
    if not call.training or share == 0:
        return (x, torch.ones_like(x, dtype=torch.bool)) if call.outputs == 2 else x
    if call.outputs == 1:
        return functional.dropout(x, share)
    kept = torch.rand_like(x) >= share
    return x * kept / (1 - share), kept
