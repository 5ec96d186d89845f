"""Small networks in which channels hide: in the batch, in constants, in weights with axes of heads, behind tables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto

from tests.engine import nets
from tests.engine.graph.channels import image_nets, token_nets
from tests.engine.graph.channels.token_nets import HEADS, INNER, LENGTH, SIZE, WIDTH
from tests.engine.nets import Builder


def blur_of_each_channel() -> onnx.ModelProto:
    """Channels become samples, so that one kernel is applied to each of them."""
    b = Builder(0)
    x = b.op("Reshape", b.conv("image", 2, 6), b.ints(-1, 1, 8, 8))
    x = b.op("Conv", x, b.random("kernel", 1, 1, 3, 3), pads=[1] * 4)
    x = b.op("Reshape", x, b.ints(-1, 6, 8, 8))
    return image_nets.classified(b, b.op("Relu", x), 6)


def pooling_of_each_channel() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Reshape", b.conv("image", 2, 6), b.ints(-1, 1, 8, 8))
    x = b.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    return image_nets.classified(b, b.op("Reshape", x, b.ints(-1, 6, 4, 4)), 6)


def product_from_the_left() -> onnx.ModelProto:
    """Channels before tokens: a matrix times [N, C, T]."""
    b = Builder(0)
    x = b.op("Transpose", "x", perm=[0, 2, 1])
    for width, wider in ((8, 12), (12, WIDTH)):
        x = b.op("Relu", b.op("MatMul", b.random("weight", wider, width), x))
    return token_nets.classified(b, b.op("Transpose", x, perm=[0, 2, 1]))


def lstm_from_constant_states() -> onnx.ModelProto:
    """States begin with zeros of a computed shape, as exporters write it."""
    b = Builder(0)
    x = b.op("Transpose", b.dense("x", 8, 6), perm=[1, 0, 2])
    weights = [b.random("weight", 1, 40, n) for n in (6, 10)]
    batch = b.op("Slice", b.op("Shape", x), b.ints(1), b.ints(2))
    state = b.op("ConstantOfShape", b.op("Concat", b.ints(1), batch, b.ints(10), axis=0))
    x = b.op(
        "LSTM", x, *weights, b.random("bias", 1, 80, fan_in=9), "", state, state, hidden_size=10
    )
    last = b.op("Gather", b.op("Squeeze", x, b.ints(1)), b.ints(-1), axis=0)
    return b.model(token_nets.TOKENS, b.gemm(b.op("Squeeze", last, b.ints(0)), 10, nets.CLASSES))


def gru_from_expanded_states() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Transpose", b.dense("x", 8, 6), perm=[1, 0, 2])
    weights = [b.random("weight", 1, 30, n) for n in (6, 10)]
    batch = b.op("Slice", b.op("Shape", x), b.ints(1), b.ints(2))
    zero = b.constant("zero", np.zeros((1, 1, 1), np.float32))
    state = b.op("Expand", zero, b.op("Concat", b.ints(1), batch, b.ints(10), axis=0))
    x = b.op("GRU", x, *weights, "", "", state, hidden_size=10, linear_before_reset=1)
    last = b.op("Gather", b.op("Squeeze", x, b.ints(1)), b.ints(-1), axis=0)
    return b.model(token_nets.TOKENS, b.gemm(b.op("Squeeze", last, b.ints(0)), 10, nets.CLASSES))


def heads_in_the_batch() -> onnx.ModelProto:
    """torch's MultiheadAttention: [T, N, E] -> [T, N * H, D], products of three axes."""
    b = Builder(0)
    x = b.op("Transpose", b.dense("x", 8, WIDTH), perm=[1, 0, 2])
    first = b.constant("first", np.array(1, np.int64))
    batch = b.op("Gather", b.op("Shape", x), first, axis=0)
    merged = b.op("Mul", batch, b.constant("heads", np.array(HEADS, np.int64)))
    sizes = [b.ints(LENGTH), b.op("Unsqueeze", merged, b.ints(0)), b.ints(SIZE)]
    parts = []
    for _ in range(3):
        y = b.op("Reshape", b.dense(x, WIDTH, INNER), b.op("Concat", *sizes, axis=0))
        parts.append(b.op("Transpose", y, perm=[1, 0, 2]))
    scores = b.op("MatMul", parts[0], b.op("Transpose", parts[1], perm=[0, 2, 1]))
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), parts[2])
    mixed = b.op("Transpose", mixed, perm=[1, 0, 2])
    sizes = [b.ints(LENGTH), b.op("Unsqueeze", batch, b.ints(0)), b.ints(INNER)]
    mixed = b.op("Reshape", mixed, b.op("Concat", *sizes, axis=0))
    x = b.op("Add", x, b.dense(mixed, INNER, WIDTH))
    return token_nets.classified(b, b.op("Transpose", x, perm=[1, 0, 2]))


def heads_as_an_axis_of_weights() -> onnx.ModelProto:
    """Weights [E, H, D] and [H, D, E], multiplied by Einsum."""
    b = Builder(0)
    x = b.dense("x", 8, WIDTH)
    q, k, v = (
        b.op(
            "Einsum", x, b.random("weight", WIDTH, HEADS, SIZE, fan_in=9), equation="bte,ehd->bhtd"
        )
        for _ in "qkv"
    )
    weights = b.op("Softmax", b.op("Einsum", q, k, equation="bhtd,bhsd->bhts"), axis=-1)
    mixed = b.op("Einsum", weights, v, equation="bhts,bhsd->bthd")
    w = b.random("weight", HEADS, SIZE, WIDTH, fan_in=20)
    return token_nets.classified(
        b, b.op("Add", x, b.op("Einsum", mixed, w, equation="bthd,hde->bte"))
    )


def windows_with_a_table_of_positions() -> onnx.ModelProto:
    """Swin: windows become samples; a bias for each head is looked up in a table."""
    b = Builder(0)
    x = b.op("Transpose", b.conv("image", 2, WIDTH), perm=[0, 2, 3, 1])
    x = b.op("Reshape", x, b.ints(-1, 2, 4, 2, 4, WIDTH))
    x = b.op("Reshape", b.op("Transpose", x, perm=[0, 1, 3, 2, 4, 5]), b.ints(-1, 16, WIDTH))
    fused = b.op("Reshape", b.dense(x, WIDTH, 3 * INNER), b.ints(-1, 16, 3, HEADS, SIZE))
    fused = b.op("Transpose", fused, perm=[2, 0, 3, 1, 4])
    b.op("Split", fused, outputs=3, axis=0)
    q, k, v = (b.op("Squeeze", part, b.ints(0)) for part in b.outputs_of_last())
    table = b.random("table", 49, HEADS, fan_in=1)
    places = b.constant("places", b.rng.integers(0, 49, 256))
    bias = b.op("Reshape", b.op("Gather", table, places, axis=0), b.ints(16, 16, -1))
    bias = b.op("Unsqueeze", b.op("Transpose", bias, perm=[2, 0, 1]), b.ints(0))
    scores = b.op("Add", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), bias)
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    mixed = b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), b.ints(-1, 16, INNER))
    x = b.op("Reshape", b.dense(mixed, INNER, WIDTH), b.ints(-1, 2, 2, 4, 4, WIDTH))
    x = b.op("Reshape", b.op("Transpose", x, perm=[0, 1, 3, 2, 4, 5]), b.ints(-1, 8, 8, WIDTH))
    return image_nets.classified(b, b.op("Transpose", x, perm=[0, 3, 1, 2]), WIDTH)


def attention_pool() -> onnx.ModelProto:
    """A learned query looks over all tokens."""
    b = Builder(0)
    x = b.dense("x", 8, WIDTH)
    query = b.random("query", 1, HEADS, 1, SIZE, fan_in=6)
    k, v = (token_nets._split(b, b.dense(x, WIDTH, INNER)) for _ in range(2))
    scores = b.op("MatMul", query, b.op("Transpose", k, perm=[0, 1, 3, 2]))
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    return b.model(token_nets.TOKENS, b.gemm(b.op("Flatten", mixed, axis=1), INNER, nets.CLASSES))


def linear_attention() -> onnx.ModelProto:
    """Keys and values meet first, without a softmax over tokens; both are made positive by Relu."""
    b = Builder(0)
    x = b.dense("x", 8, WIDTH)
    q, k, v = (token_nets._split(b, b.dense(x, WIDTH, INNER)) for _ in range(3))
    q, k = b.op("Relu", q), b.op("Transpose", b.op("Relu", k), perm=[0, 1, 3, 2])
    mixed = b.op("Transpose", b.op("MatMul", q, b.op("MatMul", k, v)), perm=[0, 2, 1, 3])
    return token_nets._residual(b, x, b.op("Reshape", mixed, b.ints(0, LENGTH, INNER)))


def one_weight_both_ways() -> onnx.ModelProto:
    """A tied autoencoder: the decoder is the transposed encoder, of convolutions."""
    b = Builder(0)
    w = b.random("weight", 6, 4, 3, 3)
    x = b.op("Relu", b.op("Conv", b.conv("image", 2, 4), w, pads=[1] * 4))
    x = b.op("ConvTranspose", x, w, pads=[1] * 4)
    return image_nets.classified(b, b.op("Relu", x), 4)


def repeated_channels() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Tile", b.op("Relu", b.conv("image", 2, 4)), b.ints(1, 3, 1, 1))
    return image_nets.classified(b, b.conv(x, 12, 6), 6)


def chosen_by_a_mask() -> onnx.ModelProto:
    """Where: a mask of places, a number, and a learned value for each channel."""
    b = Builder(0)
    mask = b.constant("mask", b.rng.integers(0, 2, (1, 1, 8, 8)).astype(bool))
    learned = b.random("learned", 1, 6, 1, 1, fan_in=1)
    x = b.op("Where", mask, b.conv("image", 2, 6), learned)
    return image_nets.classified(b, b.conv(x, 6, 6), 6)


def normalized_vectors() -> onnx.ModelProto:
    """Cosine attention and other uses of a norm: ReduceL2 over channels, then a quotient."""
    b = Builder(0)
    x = b.dense("x", 8, WIDTH)
    norm = b.op("ReduceL2", x, axes=[-1], keepdims=1)
    floor = b.constant("floor", np.array(1e-6, np.float32))
    return token_nets.classified(b, b.op("Div", x, b.op("Max", norm, floor)))


def sequences_of_convolutions() -> onnx.ModelProto:
    """Convolutions over time, dilated, with a gate (WaveNet), and skips that are summed."""
    b = Builder(0)
    x = b.op("Transpose", b.dense("x", 8, WIDTH), perm=[0, 2, 1])
    total = ""
    for dilation in (1, 2):
        w = b.random("weight", 24, WIDTH, 3)
        y = b.op("Conv", x, w, b.bias(24), pads=[dilation] * 2, dilations=[dilation])
        b.op("Split", y, b.ints(12, 12), outputs=2, axis=1)
        one, two = b.outputs_of_last()
        y = b.op("Mul", b.op("Tanh", one), b.op("Sigmoid", two))
        x = b.op("Add", x, b.op("Conv", y, b.random("weight", WIDTH, 12, 1)))
        skip = b.op("Conv", y, b.random("weight", WIDTH, 12, 1))
        total = b.op("Add", total, skip) if total else skip
    return token_nets.classified(b, b.op("Transpose", total, perm=[0, 2, 1]))


def two_outputs() -> onnx.ModelProto:
    """Of channels that are an output none can go; of the others they can."""
    b = Builder(0)
    x = b.conv(b.op("Relu", b.conv("image", 2, 6)), 6, 8)
    model = image_nets.classified(b, b.op("Relu", x), 8)
    value = onnx.helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", 8, 8, 8])
    model.graph.output.append(value)
    return model


def upsampled_channels() -> onnx.ModelProto:
    """A Resize that interpolates between channels, which pins them."""
    b = Builder(0)
    x = b.op("Relu", b.conv(b.op("Relu", b.conv("image", 2, 6)), 6, 4))
    none = b.constant("none", np.zeros(0, np.float32))
    scales = b.constant("scales", np.array([1, 2, 1, 1], np.float32))
    x = b.op("Resize", x, none, scales, mode="nearest")
    return image_nets.classified(b, b.conv(x, 8, 6), 6)


def tokens_mixed_by_a_convolution() -> onnx.ModelProto:
    """CoaT: the first tokens of several resolutions are merged by a convolution of width 1, over tokens."""
    b = Builder(0)
    x = b.op("Concat", *(b.dense("x", 8, WIDTH) for _ in range(2)), axis=1)
    w = b.random("weight", 3, 2 * LENGTH, 1)
    return token_nets.classified(b, b.op("Relu", b.op("Conv", x, w, b.bias(3))))


def gates_of_weights() -> onnx.ModelProto:
    """EfficientViM: a table of gates goes through a function before a row of it meets the channels."""
    b = Builder(0)
    x = b.conv("image", 2, 6)
    gates = b.op("Sigmoid", b.random("gates", 3, 6, fan_in=1))
    row = b.op("Gather", b.op("Reshape", gates, b.ints(3, 6, 1, 1)), b.ints(1))
    return image_nets.classified(b, b.op("Mul", x, b.op("Squeeze", row, b.ints(0))), 6)


def positions_by_a_layer() -> onnx.ModelProto:
    """Swin v2: a layer turns a table of distances into what is added to the scores of each head."""
    b = Builder(0)
    x = token_nets._stream(b)
    q, k, v = (token_nets._split(b, b.dense(x, WIDTH, INNER)) for _ in range(3))
    distances = b.random("distances", LENGTH * LENGTH, 2)
    added = b.gemm(b.op("Relu", b.gemm(distances, 2, 12)), 12, HEADS)
    added = b.op("Reshape", b.op("Transpose", added, perm=[1, 0]), b.ints(1, HEADS, LENGTH, LENGTH))
    return token_nets._residual(b, x, token_nets._weighed(b, q, k, v, [added]))


def scale_from_the_shape() -> onnx.ModelProto:
    """Attention whose scale is computed from the width of a head, by CastLike as torch's exporter writes it."""
    b = Builder(0)
    x = token_nets._stream(b)
    q, k, v = (token_nets._split(b, b.dense(x, WIDTH, INNER)) for _ in range(3))
    width = b.op("Gather", b.op("Shape", q), b.ints(-1))
    scale = b.op("Reciprocal", b.op("Sqrt", b.op("CastLike", width, q)))
    scores = b.op("MatMul", b.op("Mul", q, scale), b.op("Transpose", k, perm=[0, 1, 3, 2]))
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    mixed = b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), b.ints(0, LENGTH, INNER))
    return token_nets._residual(b, x, mixed)


def standardized_weights() -> onnx.ModelProto:
    """ResNet v2 of timm: each filter loses its mean and gets variance 1 by a BatchNormalization over the weights."""
    b = Builder(0)
    x = b.conv("image", 2, 6)
    w = b.op("Reshape", b.random("weight", 8, 6, 3, 3), b.ints(1, 8, 54))
    mean = b.op("ReduceMean", w, axes=[0, 2], keepdims=0)
    apart = b.op("Sub", w, b.op("ReduceMean", w, axes=[0, 2], keepdims=1))
    var = b.op("ReduceMean", b.op("Mul", apart, apart), axes=[0, 2], keepdims=0)
    one, none = (
        b.constant(name, np.full(8, v, np.float32)) for name, v in (("one", 1), ("none", 0))
    )
    w = b.op("BatchNormalization", w, one, none, mean, var, epsilon=1e-9)
    x = b.op("Conv", x, b.op("Reshape", w, b.ints(8, 6, 3, 3)), b.bias(8), pads=[1] * 4)
    return image_nets.classified(b, b.op("Relu", x), 8)


def lstm_of_reordered_gates() -> onnx.ModelProto:
    """Torch's order of gates is brought into ONNX's at each run."""
    b = Builder(0)
    weights = []
    for inputs in (8, 6):
        w = b.random("weight", 4 * 6, inputs)
        gates = [b.op("Slice", w, b.ints(6 * g), b.ints(6 * g + 6)) for g in (0, 3, 1, 2)]
        weights.append(b.op("Unsqueeze", b.op("Concat", *gates, axis=0), b.ints(0)))
    x = b.op("Transpose", "x", perm=[1, 0, 2])
    states = b.op("Squeeze", b.op("LSTM", x, *weights, hidden_size=6), b.ints(1))
    return token_nets.classified(b, b.op("Transpose", states, perm=[1, 0, 2]), 6)


def group_normalization_without_bias() -> onnx.ModelProto:
    """As torch exports one group: its bias is 0 as often as there are channels."""
    b = Builder(0)
    x = b.conv("image", 2, 6)
    one, none = (
        b.constant(name, np.full(1, v, np.float32)) for name, v in (("one", 1), ("none", 0))
    )
    y = b.op("InstanceNormalization", b.op("Reshape", x, b.ints(0, 1, -1)), one, none)
    y = b.op("Reshape", y, b.op("Shape", x))
    bias = b.op("Expand", none, b.op("Shape", x, start=1, end=2))
    gain = b.op("Unsqueeze", b.random("gain", 6, fan_in=1), b.ints(1, 2))
    y = b.op("Mul", y, b.op("CastLike", gain, y))
    return image_nets.classified(b, b.op("Add", y, b.op("Unsqueeze", bias, b.ints(1, 2))), 6)


def biases_cut_from_one() -> onnx.ModelProto:
    """Torch's attention over other tokens than its own: queries and keys have parts of one bias."""
    b = Builder(0)
    x, bias = token_nets._stream(b), b.bias(20)
    parts = [
        b.op("Slice", bias, b.ints(start), b.ints(end), b.ints(0))
        for start, end in ((0, 8), (8, 20))
    ]
    widths = ((8, parts[0]), (12, parts[1]))
    mixed = [
        b.op("Relu", b.op("Add", b.op("MatMul", x, b.random("weight", WIDTH, n)), part))
        for n, part in widths
    ]
    return token_nets.classified(b, b.op("Concat", *mixed, axis=2), 20)


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    build.__name__: build
    for build in (
        blur_of_each_channel,
        pooling_of_each_channel,
        product_from_the_left,
        lstm_from_constant_states,
        gru_from_expanded_states,
        heads_in_the_batch,
        heads_as_an_axis_of_weights,
        windows_with_a_table_of_positions,
        attention_pool,
        linear_attention,
        one_weight_both_ways,
        repeated_channels,
        chosen_by_a_mask,
        normalized_vectors,
        sequences_of_convolutions,
        two_outputs,
        upsampled_channels,
        tokens_mixed_by_a_convolution,
        gates_of_weights,
        positions_by_a_layer,
        biases_cut_from_one,
        scale_from_the_shape,
        group_normalization_without_bias,
    )
}
