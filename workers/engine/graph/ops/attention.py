"""Scaled dot-product attention and rotary embeddings as single operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from workers.engine.graph import tensors
from workers.engine.graph.ops._operator import Call, Operand, operator

Tensor = torch.Tensor


def _attention_macs(operands: Sequence[Operand], results: Sequence[Tensor]) -> int:
    """Of both products, with all keys counted."""
    q, k, v = operands[:3]
    assert q is not None
    assert k is not None
    assert v is not None
    past = operands[4].shape[2] if len(operands) > 4 and operands[4] is not None else 0
    return (q.numel() + results[0].numel()) * (k.shape[-2] + past)


@operator(takes_call=True, macs=_attention_macs)
def Attention(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """q: [N, heads, T, size] or [N, T, heads * size]; a row with every key masked gives zeros."""
    packed = q.dim() == 3
    if packed:
        assert q_num_heads is not None
        assert kv_num_heads is not None
        q, k, v = _unpack(q, q_num_heads), _unpack(k, kv_num_heads), _unpack(v, kv_num_heads)
    present_key = k if past_key is None else torch.cat([past_key, k], 2)
    present_value = v if past_value is None else torch.cat([past_value, v], 2)
    offset = _offset(q, past_key, nonpad_kv_seqlen)
    window = (left_window_size, 0 if is_causal else right_window_size)
    bias = _bias(q, present_key, attn_mask, nonpad_kv_seqlen, offset, window)
    heads = q.shape[1] // present_key.shape[1]
    keys, values = (x.repeat_interleave(heads, 1) for x in (present_key, present_value))
    root = math.sqrt(scale if scale is not None else 1 / math.sqrt(q.shape[-1]))
    half = torch.tensor(root, dtype=q.dtype, device=q.device)
    plain = (q * half) @ (keys * half).transpose(-1, -2)
    capped = softcap * torch.tanh(plain / softcap) if softcap else plain
    scores = capped + bias
    weights = _softmax(scores, bias, softmax_precision).to(q.dtype)
    y = weights @ values
    y = y.transpose(1, 2).flatten(2) if packed else y
    shown = (plain, capped, scores, weights)[qk_matmul_output_mode].to(q.dtype)
    return (y, present_key, present_value, shown)[: call.outputs] if call.outputs > 1 else y


@operator(domain="ai.onnx.preview", takes_call=True, macs=_attention_macs)
def FlexAttention(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    prob_mod: Any = None,
    scale: float | None = None,
    score_mod: Any = None,
    softmax_precision: int | None = None,
) -> Tensor:
    """Scores and probabilities pass through subgraphs, if given. q: [N, heads, T, size], k and v alike."""
    heads = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(heads, 1) for x in (k, v))
    root = math.sqrt(scale if scale is not None else 1 / math.sqrt(q.shape[-1]))
    half = torch.tensor(root, dtype=q.dtype, device=q.device)
    wide = torch.promote_types(q.dtype, torch.float32)
    precision = wide if softmax_precision is None else tensors.dtype_of(softmax_precision)
    scores = ((q * half) @ (keys * half).transpose(-1, -2)).to(precision)
    if score_mod is not None:
        (scores,) = call.subgraph(score_mod, [scores])
    weights = torch.softmax(scores, -1)
    if prob_mod is not None:
        (weights,) = call.subgraph(prob_mod, [weights])
    return (weights @ values.to(precision)).to(v.dtype)


def _unpack(x: Tensor, heads: int) -> Tensor:
    return _split_heads(x, heads).transpose(1, 2)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], heads, -1)


def _offset(q: Tensor, past_key: Tensor | None, lengths: Tensor | None) -> Tensor:
    """How many keys precede the first query; one number, or one for each sample."""
    if past_key is None and lengths is not None:
        return (lengths - q.shape[2]).reshape(-1, 1, 1, 1)
    past = 0 if past_key is None else past_key.shape[2]
    return torch.tensor(past, device=q.device)


def _bias(
    q: Tensor,
    keys: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    offset: Tensor,
    window: tuple[int, int],
) -> Tensor:
    """What is added to the scores: 0, minus infinity, or a given mask; [..., queries, keys]."""
    queries, length = q.shape[2], keys.shape[2]
    bias = torch.zeros((queries, length), dtype=q.dtype, device=q.device)
    key = torch.arange(length, device=q.device)
    query = torch.arange(queries, device=q.device).unsqueeze(1) + offset
    left, right = window
    allowed = torch.ones((queries, length), dtype=torch.bool, device=q.device)
    if left >= 0:
        allowed = allowed & (key >= query - left)
    if right >= 0:
        allowed = allowed & (key <= query + right)
    if lengths is not None:
        allowed = allowed & (key < lengths.reshape(-1, 1, 1, 1))
    if mask is not None:
        missing = length - mask.shape[-1]
        if mask.dtype is torch.bool:
            allowed = allowed & functional.pad(mask, [0, missing], value=False)
        else:
            bias = bias + functional.pad(mask, [0, missing], value=-math.inf)
    return bias.masked_fill(~allowed, -math.inf)


def _softmax(scores: Tensor, bias: Tensor, precision: int | None) -> Tensor:
    wide = scores if precision is None else scores.to(tensors.dtype_of(precision))
    masked = torch.isneginf(bias).all(-1, keepdim=True)
    return torch.softmax(wide.masked_fill(masked, 0), -1).masked_fill(masked, 0)


@operator()
def RotaryEmbedding(
    x: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Su et al.: RoFormer (arXiv 2104.09864). x: [N, heads, T, size] or [N, T, heads * size]."""
    turned = x.transpose(1, 2) if x.dim() == 4 else _split_heads(x, num_heads)
    width = rotary_embedding_dim or turned.shape[-1]
    part, rest = turned[..., :width], turned[..., width:]
    if position_ids is not None:
        cos_cache, sin_cache = cos_cache[position_ids], sin_cache[position_ids]
    cos, sin = cos_cache.unsqueeze(2), sin_cache.unsqueeze(2)
    if interleaved:
        first, second = part[..., 0::2], part[..., 1::2]
    else:
        first, second = part.chunk(2, -1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if interleaved:
        part = torch.stack([real, imaginary], -1).flatten(-2)
    else:
        part = torch.cat([real, imaginary], -1)
    whole = torch.cat([part, rest], -1)
    return whole.transpose(1, 2) if x.dim() == 4 else whole.flatten(2)


@operator(host=(2,))
def TensorScatter(
    cache: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Tensor:
    axis = axis % cache.dim()
    starts = [0] * cache.shape[0] if write_indices is None else tensors.ints(write_indices)
    step = torch.arange(update.shape[axis], device=cache.device)
    samples = []
    for sample, new, start in zip(cache, update, starts, strict=True):
        place = (step + start) % cache.shape[axis] if mode == "circular" else step + start
        samples.append(sample.index_copy(axis - 1, place, new))
    return torch.stack(samples)
