"""Attention without a softmax: a state that each token writes to and reads from, and the convolution before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from workers.engine.errors import Unsupported
from workers.engine.graph.ops._operator import Operand, operator

Tensor = torch.Tensor

_RULES = ("linear", "gated", "delta", "gated_delta")


def _state_macs(operands: Sequence[Operand], results: Sequence[Tensor]) -> int:
    """Of the write and the read of every token."""
    q, state = operands[0], results[1]
    assert q is not None
    size, tokens = state.numel(), int(q.shape[1])
    return tokens * (size + results[0].numel() // max(tokens, 1) * int(state.shape[2]))


@operator(macs=_state_macs)
def LinearAttention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_state: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    chunk_size: int = 64,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, Tensor]:
    """Token by token; Yang et al.: Gated Delta Networks (arXiv 2412.06464).

    q: [N, T, heads * size], k and v alike; decay: [N, T, kv heads] or one for each key element, in
    logarithms; beta: [N, T, kv heads or 1]. Answers [N, T, heads * size of v] and the state
    [N, kv heads, size of k, size of v]. Computed in float32 at least.
    """
    if update_rule not in _RULES:
        raise Unsupported(f"LinearAttention with update_rule '{update_rule}'")
    wide = torch.promote_types(q.dtype, torch.float32)
    queries, keys, values = (
        _heads(x, heads).to(wide)
        for x, heads in ((q, q_num_heads), (k, kv_num_heads), (v, kv_num_heads))
    )
    factor = scale or 1 / math.sqrt(queries.shape[-1])
    keep = _heads(decay, kv_num_heads).to(wide).exp() if decay is not None else None
    rate = beta.to(wide).unsqueeze(-1) if beta is not None else None
    state = _initial(past_state, keys, values)
    read = []
    for t in range(q.shape[1]):
        state = state if keep is None else state * keep[:, t].unsqueeze(-1)
        key, new = keys[:, t].unsqueeze(-1), values[:, t]
        if rate is not None:
            new = rate[:, t] * (new - (state * key).sum(-2))
        state = state + key * new.unsqueeze(-2)
        shared = state.repeat_interleave(q_num_heads // kv_num_heads, 1)
        read.append(factor * (queries[:, t].unsqueeze(-2) @ shared).squeeze(-2))
    y = torch.stack(read, 1).flatten(2).to(q.dtype)
    return y, state.to(q.dtype if past_state is None else past_state.dtype)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], heads, -1)


def _initial(past: Tensor | None, keys: Tensor, values: Tensor) -> Tensor:
    if past is not None:
        return past.to(keys.dtype)
    return keys.new_zeros(keys.shape[0], keys.shape[2], keys.shape[3], values.shape[3])


def _causal_macs(operands: Sequence[Operand], results: Sequence[Tensor]) -> int:
    weight = operands[1]
    assert weight is not None
    return results[0].numel() * int(weight.shape[-1])


@operator(weights=(1, 2), macs=_causal_macs)
def CausalConvWithState(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    """A depthwise convolution over the past. x: [N, C, T], w: [C, 1, k]; the state is the last k - 1 columns."""
    if activation not in ("none", "silu", "swish"):
        raise Unsupported(f"CausalConvWithState with activation '{activation}'")
    before = w.shape[-1] - 1
    past = x.new_zeros(*x.shape[:2], before) if past_state is None else past_state
    padded = torch.cat([past, x], -1)
    y = functional.conv1d(padded, w, b, groups=x.shape[1])
    y = y if activation == "none" else functional.silu(y)
    return y, padded.narrow(-1, x.shape[-1], before)
