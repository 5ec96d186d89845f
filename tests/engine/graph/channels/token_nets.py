"""Small networks over sequences: attention, recurrence, gates, normalization, tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto

from tests.engine import nets
from tests.engine.nets import Builder

LENGTH, WIDTH, HEADS, SIZE = 5, 16, 4, 6
"""Tokens, width of the stream, heads and their width."""

TOKENS = [("x", TensorProto.FLOAT, ["batch", LENGTH, 8])]
INNER = HEADS * SIZE


def classified(b: Builder, x: str, width: int = WIDTH) -> onnx.ModelProto:
    pooled = b.op("ReduceMean", x, axes=[1], keepdims=0)
    if b.opset >= 18:
        b.nodes[-1].ClearField("attribute")
        b.nodes[-1].input.append(b.ints(1))
        b.nodes[-1].attribute.append(onnx.helper.make_attribute("keepdims", 0))
    return b.model(TOKENS, b.dense(pooled, width, nets.CLASSES))


def _number(b: Builder, value: float) -> str:
    return b.constant("number", np.array(value, np.float32))


def _weighed(b: Builder, q: str, k: str, v: str, masks: Sequence[str] = ()) -> str:
    """q, k, v: [N, H, T, D] -> [N, T, H * D]."""
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = b.op("Mul", scores, _number(b, SIZE**-0.5))
    for added in masks:
        scores = b.op("Add", scores, added)
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    mixed = b.op("Transpose", mixed, perm=[0, 2, 1, 3])
    return b.op("Reshape", mixed, b.ints(0, LENGTH, INNER))


def _split(b: Builder, x: str, heads: int = HEADS) -> str:
    x = b.op("Reshape", x, b.ints(0, LENGTH, heads, SIZE))
    return b.op("Transpose", x, perm=[0, 2, 1, 3])


def _stream(b: Builder) -> str:
    return b.dense("x", 8, WIDTH)


def _residual(b: Builder, x: str, mixed: str) -> onnx.ModelProto:
    return classified(b, b.op("Add", x, b.dense(mixed, INNER, WIDTH)))


def attention_separate() -> onnx.ModelProto:
    b = Builder(0)
    x = _stream(b)
    q, k, v = (_split(b, b.dense(x, WIDTH, INNER)) for _ in range(3))
    return _residual(b, x, _weighed(b, q, k, v))


def attention_masked() -> onnx.ModelProto:
    """A causal mask, and a bias for each head that is learned."""
    b = Builder(0)
    x = _stream(b)
    q, k, v = (_split(b, b.dense(x, WIDTH, INNER)) for _ in range(3))
    causal = np.triu(np.full((1, 1, LENGTH, LENGTH), -1e9, np.float32), 1)
    learned = b.random("position", 1, HEADS, LENGTH, LENGTH, fan_in=1)
    return _residual(b, x, _weighed(b, q, k, v, [b.constant("mask", causal), learned]))


def attention_fused(order: Literal["three first", "heads first"]) -> onnx.ModelProto:
    """One matrix for q, k and v; its outputs are [3, heads, size] or [heads, 3, size]."""
    b = Builder(0)
    x = _stream(b)
    sizes = (3, HEADS, SIZE) if order == "three first" else (HEADS, 3, SIZE)
    perm = [2, 0, 3, 1, 4] if order == "three first" else [3, 0, 2, 1, 4]
    fused = b.op("Reshape", b.dense(x, WIDTH, 3 * INNER), b.ints(0, LENGTH, *sizes))
    fused = b.op("Transpose", fused, perm=perm)
    places = (b.constant("place", np.array(i, np.int64)) for i in range(3))
    q, k, v = (b.op("Gather", fused, place, axis=0) for place in places)
    return _residual(b, x, _weighed(b, q, k, v))


def attention_fused_then_split() -> onnx.ModelProto:
    """q, k and v are cut from one product before heads are."""
    b = Builder(0)
    x = _stream(b)
    b.op("Split", b.dense(x, WIDTH, 3 * INNER), b.ints(INNER, INNER, INNER), outputs=3, axis=-1)
    q, k, v = (_split(b, part) for part in b.outputs_of_last())
    return _residual(b, x, _weighed(b, q, k, v))


def attention_of_few_keys() -> onnx.ModelProto:
    """Grouped queries: two heads of keys and values for four of queries."""
    b = Builder(0)
    x = _stream(b)
    q = _split(b, b.dense(x, WIDTH, INNER))
    k, v = (_split(b, b.dense(x, WIDTH, 2 * SIZE), 2) for _ in range(2))
    k, v = (b.op("Unsqueeze", y, b.ints(2)) for y in (k, v))
    k, v = (b.op("Expand", y, b.ints(1, 2, 2, LENGTH, SIZE)) for y in (k, v))
    k, v = (b.op("Reshape", y, b.ints(0, HEADS, LENGTH, SIZE)) for y in (k, v))
    return _residual(b, x, _weighed(b, q, k, v))


def attention_by_computed_shape() -> onnx.ModelProto:
    """Heads and the scale are computed from the shape of the stream, as tracing exporters write it."""
    b = Builder(0)
    x = _stream(b)
    q, k, v = (b.dense(x, WIDTH, INNER) for _ in range(3))
    q, k, v = (nets._heads(b, y, HEADS, SIZE) for y in (q, k, v))
    last = b.constant("last", np.array(-1, np.int64))
    size = b.op("Cast", b.op("Gather", b.op("Shape", q), last, axis=0), to=TensorProto.FLOAT)
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = b.op("Div", scores, b.op("Sqrt", size))
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    mixed = b.op("Transpose", mixed, perm=[0, 2, 1, 3])
    lead = b.op("Slice", b.op("Shape", mixed), b.ints(0), b.ints(2), b.ints(0))
    mixed = b.op("Reshape", mixed, b.op("Concat", lead, b.ints(-1), axis=0))
    return _residual(b, x, mixed)


def attention_over_channels() -> onnx.ModelProto:
    """Cross-covariance attention: channels of a head weigh each other."""
    b = Builder(0)
    x = _stream(b)
    q, k, v = (_split(b, b.dense(x, WIDTH, INNER)) for _ in range(3))
    q, v = (b.op("Transpose", y, perm=[0, 1, 3, 2]) for y in (q, v))
    weights = b.op("Softmax", b.op("MatMul", q, k), axis=-1)
    mixed = b.op("Transpose", b.op("MatMul", weights, v), perm=[0, 3, 1, 2])
    return _residual(b, x, b.op("Reshape", mixed, b.ints(0, LENGTH, INNER)))


def attention_by_einsum() -> onnx.ModelProto:
    b = Builder(0)
    x = _stream(b)
    q, k, v = (b.op("Reshape", b.dense(x, WIDTH, INNER), b.ints(0, 0, HEADS, SIZE)) for _ in "qkv")
    weights = b.op("Softmax", b.op("Einsum", q, k, equation="bthd,bshd->bhts"), axis=-1)
    mixed = b.op("Einsum", weights, v, equation="bhts,bshd->bthd")
    return _residual(b, x, b.op("Reshape", mixed, b.ints(0, 0, INNER)))


def attention_with_rotary_positions() -> onnx.ModelProto:
    """Halves of each head are turned by an angle of the place."""
    b = Builder(0)
    x = _stream(b)
    q, k, v = (_split(b, b.dense(x, WIDTH, INNER)) for _ in range(3))
    angles = b.rng.uniform(0, 3, (1, 1, LENGTH, SIZE // 2)).astype(np.float32).repeat(2, -1)
    angles = np.concatenate([angles[..., ::2]] * 2, -1)
    cos, sin = b.constant("cos", np.cos(angles)), b.constant("sin", np.sin(angles))
    return _residual(b, x, _weighed(b, *(_turned(b, y, cos, sin) for y in (q, k)), v))


def _turned(b: Builder, x: str, cos: str, sin: str) -> str:
    first = b.op("Slice", x, b.ints(0), b.ints(SIZE // 2), b.ints(3))
    second = b.op("Slice", x, b.ints(SIZE // 2), b.ints(2**40), b.ints(3))
    turned = b.op("Concat", b.op("Neg", second), first, axis=-1)
    return b.op("Add", b.op("Mul", x, cos), b.op("Mul", turned, sin))


def attention_operator(*, packed: bool, keys: int = HEADS) -> onnx.ModelProto:
    """Opset 23's Attention, of [N, T, heads * size] or [N, heads, T, size], without a scale."""
    b = Builder(0, opset=23)
    x = _stream(b)
    q = b.dense(x, WIDTH, INNER)
    k, v = (b.dense(x, WIDTH, keys * SIZE) for _ in range(2))
    if packed:
        mixed = b.op("Attention", q, k, v, q_num_heads=HEADS, kv_num_heads=keys, is_causal=1)
        return _residual(b, x, mixed)
    q, k, v = _split(b, q), _split(b, k, keys), _split(b, v, keys)
    mixed = b.op("Transpose", b.op("Attention", q, k, v), perm=[0, 2, 1, 3])
    return _residual(b, x, b.op("Reshape", mixed, b.ints(0, LENGTH, INNER)))


def recurrent(kind: str, *, layers: int = 1, directions: int = 1) -> onnx.ModelProto:
    b = Builder(0)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    x, width = b.op("Transpose", b.dense("x", 8, 6), perm=[1, 0, 2]), 6
    for _ in range(layers):
        weights = [b.random("weight", directions, gates * 10, n) for n in (width, 10)]
        bias = b.random("bias", directions, 2 * gates * 10, fan_in=20)
        way = "bidirectional" if directions == 2 else "forward"
        y = b.op(kind, x, *weights, bias, hidden_size=10, direction=way)
        width = directions * 10
        x = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.ints(0, 0, width))
    last = b.op("Gather", x, b.constant("last", np.array(-1, np.int64)), axis=0)
    return b.model(TOKENS, b.gemm(last, width, nets.CLASSES))


def last_hidden_state() -> onnx.ModelProto:
    """The second output of an LSTM that starts from a learned state, with peepholes."""
    b = Builder(0)
    x = b.op("Transpose", b.dense("x", 8, 6), perm=[1, 0, 2])
    weights = [b.random("weight", 1, 40, n) for n in (6, 10)]
    bias, peephole = b.random("bias", 1, 80, fan_in=20), b.random("peephole", 1, 30, fan_in=9)
    b.op("LSTM", x, *weights, bias, "", "", "", peephole, hidden_size=10, outputs=2)
    hidden = b.op("Squeeze", b.outputs_of_last()[1], b.ints(0))
    return b.model(TOKENS, b.gemm(hidden, 10, nets.CLASSES))


def layer_normalization() -> onnx.ModelProto:
    b = Builder(0)
    x = _stream(b)
    x = b.op("Add", x, b.dense(nets._gelu(b, b.dense(x, WIDTH, 12)), 12, WIDTH))
    return classified(b, b.op("Relu", nets._layer_norm(b, x, WIDTH)))


def layer_normalization_by_hand() -> onnx.ModelProto:
    """ReduceMean, Sub, Pow, ReduceMean, Sqrt, Div: what exporters wrote before opset 17."""
    b = Builder(0)
    x = _stream(b)
    x = b.op("Sub", x, b.op("ReduceMean", x, axes=[-1], keepdims=1))
    variance = b.op("ReduceMean", b.op("Pow", x, _number(b, 2.0)), axes=[-1], keepdims=1)
    x = b.op("Div", x, b.op("Sqrt", b.op("Add", variance, _number(b, 1e-5))))
    x = b.op("Mul", x, b.random("scale", WIDTH, fan_in=1))
    return classified(b, b.op("Add", x, b.bias(WIDTH)))


def rms_normalization() -> onnx.ModelProto:
    b = Builder(0, opset=23)
    scale = b.constant("scale", b.rng.uniform(0.5, 1.5, WIDTH).astype(np.float32))
    x = b.op("RMSNormalization", _stream(b), scale, axis=-1)
    return classified(b, b.dense(x, WIDTH, WIDTH))


def swiglu() -> onnx.ModelProto:
    b = Builder(0)
    x = _stream(b)
    gate, value = b.dense(x, WIDTH, 20), b.dense(x, WIDTH, 20)
    gate = b.op("Mul", gate, b.op("Sigmoid", gate))
    return classified(b, b.op("Add", x, b.dense(b.op("Mul", gate, value), 20, WIDTH)))


def mixed_tokens() -> onnx.ModelProto:
    """MLP-Mixer: products over tokens between products over channels."""
    b = Builder(0)
    x = _stream(b)
    y = b.dense(b.op("Transpose", x, perm=[0, 2, 1]), LENGTH, 7)
    y = b.op("Transpose", b.dense(b.op("Relu", y), 7, LENGTH), perm=[0, 2, 1])
    return classified(b, b.op("Add", x, y))


def einsum_with_a_weight() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Einsum", "x", b.random("weight", WIDTH, 8), equation="btc,oc->bto")
    return classified(b, b.op("Relu", x))


def tied_embedding() -> onnx.ModelProto:
    """The table that tokens are looked up in is also the matrix of the output."""
    b = Builder(0)
    table = b.random("embedding", 50, WIDTH, fan_in=WIDTH)
    x = b.op("Relu", b.dense(b.op("Gather", table, "tokens", axis=0), WIDTH, 12))
    x = b.op("ReduceMean", b.dense(x, 12, WIDTH), axes=[1], keepdims=0)
    logits = b.op("MatMul", x, b.op("Transpose", table, perm=[1, 0]))
    tokens = [("tokens", TensorProto.INT64, ["batch", 12])]
    return b.model(tokens, logits, ("batch", 50))


def class_token() -> onnx.ModelProto:
    """A learned token before the others, places added, and the first token is classified."""
    b = Builder(0)
    first = b.constant("first", np.array(0, np.int64))
    batch = b.op("Unsqueeze", b.op("Gather", b.op("Shape", "x"), first, axis=0), b.ints(0))
    token = b.random("token", 1, 1, WIDTH, fan_in=1)
    token = b.op("Expand", token, b.op("Concat", batch, b.ints(1, WIDTH), axis=0))
    x = b.op("Concat", token, _stream(b), axis=1)
    x = b.op("Add", x, b.random("position", 1, LENGTH + 1, WIDTH, fan_in=1))
    x = b.op("Add", x, b.dense(b.op("Relu", b.dense(x, WIDTH, 12)), 12, WIDTH))
    return b.model(TOKENS, b.dense(b.op("Gather", x, first, axis=1), WIDTH, nets.CLASSES))


ATTENTION: dict[str, Callable[[], onnx.ModelProto]] = {
    **{
        build.__name__: build
        for build in (
            attention_separate,
            attention_masked,
            attention_fused_then_split,
            attention_of_few_keys,
            attention_by_computed_shape,
            attention_over_channels,
            attention_by_einsum,
            attention_with_rotary_positions,
        )
    },
    "attention_fused_three_first": lambda: attention_fused("three first"),
    "attention_fused_heads_first": lambda: attention_fused("heads first"),
    "attention_operator_packed": lambda: attention_operator(packed=True),
    "attention_operator_of_heads": lambda: attention_operator(packed=False),
    "attention_operator_of_few_keys": lambda: attention_operator(packed=True, keys=2),
}

NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    **ATTENTION,
    **{
        build.__name__: build
        for build in (
            last_hidden_state,
            layer_normalization,
            layer_normalization_by_hand,
            rms_normalization,
            swiglu,
            mixed_tokens,
            einsum_with_a_weight,
            tied_embedding,
            class_token,
        )
    },
    "lstm": lambda: recurrent("LSTM"),
    "lstm_stacked_both_ways": lambda: recurrent("LSTM", layers=2, directions=2),
    "gru": lambda: recurrent("GRU"),
    "gru_stacked_both_ways": lambda: recurrent("GRU", layers=2, directions=2),
    "rnn_both_ways": lambda: recurrent("RNN", directions=2),
}
