"""Small networks over images, one for each way in which channels of convolutions depend on each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto

from tests.engine import nets
from tests.engine.nets import Builder

IMAGE = [("image", TensorProto.FLOAT, ["batch", 2, 8, 8])]


def classified(b: Builder, x: str, channels: int) -> onnx.ModelProto:
    return b.model(IMAGE, b.pooled_classifier(x, channels))


def _scalar(b: Builder, value: float) -> str:
    return b.constant("number", np.array(value, np.float32))


def concatenation() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Concat", b.conv("image", 2, 6), b.conv("image", 2, 4), axis=1)
    return classified(b, b.conv(b.op("Relu", x), 10, 8), 8)


def concatenation_with_itself() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Relu", b.conv("image", 2, 6))
    return classified(b, b.conv(b.op("Concat", x, x, axis=1), 12, 8), 8)


def sum_of_branches() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Add", b.conv("image", 2, 6), b.conv("image", 2, 6, k=1))
    return classified(b, b.op("Relu", x), 6)


def residual_chain() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Relu", b.batch_norm(b.conv("image", 2, 8), 8))
    for _ in range(3):
        inner = b.op("Relu", b.batch_norm(b.conv(x, 8, 6), 6))
        x = b.op("Relu", b.op("Add", x, b.batch_norm(b.conv(inner, 6, 8), 8)))
    return classified(b, x, 8)


def flatten_to_linear() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Flatten", b.op("Relu", b.conv("image", 2, 4)), axis=1)
    return b.model(IMAGE, b.gemm(x, 256, nets.CLASSES))


def hard_coded_view() -> onnx.ModelProto:
    """View(-1, 256), and a Reshape of which every size but the batch is written down."""
    b = Builder(0)
    x = b.op("Reshape", b.op("Relu", b.conv("image", 2, 8)), b.ints(-1, 8, 64))
    x = b.op("Reshape", b.op("Transpose", x, perm=[0, 2, 1]), b.ints(-1, 512))
    return b.model(IMAGE, b.gemm(x, 512, nets.CLASSES))


def view_of_the_batch() -> onnx.ModelProto:
    """View(x.size(0), 64 * 4): the batch is computed, the rest is written down."""
    b = Builder(0)
    x = b.op("Relu", b.conv("image", 2, 4))
    first = b.constant("first", np.array(0, np.int64))
    batch = b.op("Unsqueeze", b.op("Gather", b.op("Shape", x), first, axis=0), b.ints(0))
    x = b.op("Reshape", x, b.op("Concat", batch, b.ints(256), axis=0))
    return b.model(IMAGE, b.gemm(x, 256, nets.CLASSES))


def grouped_convolution() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Relu", b.conv(b.conv("image", 2, 8), 8, 12, group=4))
    return classified(b, b.conv(x, 12, 12, group=2), 12)


def depthwise_convolution() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Relu", b.conv("image", 2, 6))
    x = b.op("Relu", b.conv(x, 6, 12, group=6))
    return classified(b, b.conv(x, 12, 8, k=1), 8)


def transposed_convolution() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Relu", b.conv("image", 2, 6))
    x = b.op("ConvTranspose", x, b.random("weight", 6, 4, 2, 2), b.bias(4), strides=[2, 2])
    x = b.op("ConvTranspose", x, b.random("weight", 4, 1, 2, 2), b.bias(4), group=4)
    return classified(b, x, 4)


def grouped_transposed_convolution() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Relu", b.conv("image", 2, 8))
    w = b.random("weight", 8, 6, 2, 2)
    x = b.op("ConvTranspose", x, w, b.bias(12), strides=[2, 2], group=2)
    return classified(b, b.op("Relu", x), 12)


def group_normalization() -> onnx.ModelProto:
    b = Builder(0, opset=21)
    x = b.conv("image", 2, 12)
    scale = b.constant("scale", b.rng.uniform(0.5, 1.5, 12).astype(np.float32))
    x = b.op("GroupNormalization", x, scale, b.bias(12), num_groups=3)
    return classified(b, b.conv(b.op("Relu", x), 12, 8), 8)


def group_normalization_of_one() -> onnx.ModelProto:
    """As many groups as channels."""
    b = Builder(0, opset=21)
    x = b.conv("image", 2, 8)
    scale = b.constant("scale", b.rng.uniform(0.5, 1.5, 8).astype(np.float32))
    x = b.op("GroupNormalization", x, scale, b.bias(8), num_groups=8)
    return classified(b, b.op("Relu", x), 8)


def group_normalization_as_exported() -> onnx.ModelProto:
    """Groups as samples of an InstanceNormalization, then the scale: what older exporters write."""
    b = Builder(0)
    x = b.conv("image", 2, 12)
    rows = b.op("Reshape", x, b.ints(0, 3, -1))
    ones, zeros = (b.constant("number", np.full(3, v, np.float32)) for v in (1, 0))
    rows = b.op("InstanceNormalization", rows, ones, zeros)
    x = b.op("Reshape", rows, b.op("Shape", x))
    scale = b.constant("scale", b.rng.uniform(0.5, 1.5, (12, 1, 1)).astype(np.float32))
    x = b.op("Mul", x, scale)
    return classified(b, b.conv(b.op("Relu", x), 12, 8), 8)


def instance_normalization() -> onnx.ModelProto:
    b = Builder(0)
    scale = b.constant("scale", b.rng.uniform(0.5, 1.5, 6).astype(np.float32))
    x = b.op("InstanceNormalization", b.conv("image", 2, 6), scale, b.bias(6))
    return classified(b, b.conv(b.op("Relu", x), 6, 8), 8)


def channels_first_layer_norm() -> onnx.ModelProto:
    """ConvNeXt's: to channels last, LayerNormalization, and back."""
    b = Builder(0)
    x = b.op("Transpose", b.conv("image", 2, 8), perm=[0, 2, 3, 1])
    x = b.op("Transpose", nets._layer_norm(b, x, 8), perm=[0, 3, 1, 2])
    return classified(b, b.op("Relu", b.conv(x, 8, 8, group=8)), 8)


def pixel_shuffle(mode: str) -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("DepthToSpace", b.conv("image", 2, 48), blocksize=2, mode=mode)
    return classified(b, b.op("Relu", x), 12)


def pixel_shuffle_by_reshape() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Reshape", b.conv("image", 2, 48), b.ints(-1, 12, 2, 2, 8, 8))
    x = b.op("Transpose", x, perm=[0, 1, 4, 2, 5, 3])
    return classified(b, b.op("Relu", b.op("Reshape", x, b.ints(-1, 12, 16, 16))), 12)


def pixel_unshuffle() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("SpaceToDepth", b.op("Relu", b.conv("image", 2, 4)), blocksize=2)
    return classified(b, b.conv(x, 16, 8), 8)


def channel_shuffle() -> onnx.ModelProto:
    """ShuffleNet: grouped, mixed, depthwise, grouped."""
    b = Builder(0)
    x = b.op("Relu", b.conv(b.conv("image", 2, 12), 12, 12, k=1, group=3))
    x = b.op("Reshape", x, b.ints(0, 3, 4, 8, 8))
    x = b.op("Reshape", b.op("Transpose", x, perm=[0, 2, 1, 3, 4]), b.ints(0, 12, 8, 8))
    x = b.conv(b.conv(x, 12, 12, group=12), 12, 12, k=1, group=3)
    return classified(b, x, 12)


def one_convolution_twice() -> onnx.ModelProto:
    b = Builder(0)
    x = b.conv("image", 2, 6)
    w = b.random("weight", 6, 6, 3, 3)
    for _ in range(2):
        x = b.op("Relu", b.op("Conv", x, w, pads=[1] * 4))
    return classified(b, x, 6)


def padding_of_channels(value: float) -> onnx.ModelProto:
    """A shortcut that is filled up with channels of a constant."""
    b = Builder(0)
    x = b.op("Pad", b.conv("image", 2, 4), b.ints(0, 1, 0, 0, 0, 3, 0, 0), _scalar(b, value))
    return classified(b, b.op("Relu", b.conv(b.op("Relu", x), 8, 6)), 6)


def padded_shortcut() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Pad", b.conv("image", 2, 4), b.ints(0, 1, 0, 0, 0, 3, 0, 0))
    return classified(b, b.op("Add", x, b.conv("image", 2, 8)), 8)


def padding_of_space() -> onnx.ModelProto:
    b = Builder(0)
    edges = b.ints(0, 0, 1, 2, 0, 0, 1, 0)
    x = b.op("Pad", b.conv("image", 2, 6), edges, mode="reflect")
    return classified(b, b.op("Pad", b.conv(x, 6, 6), edges, _scalar(b, 3.0)), 6)


def gated_linear_unit() -> onnx.ModelProto:
    b = Builder(0)
    b.op("Split", b.conv("image", 2, 12), b.ints(6, 6), outputs=2, axis=1)
    value, gate = b.outputs_of_last()
    return classified(b, b.op("Mul", value, b.op("Sigmoid", gate)), 6)


def chunks() -> onnx.ModelProto:
    """Three chunks by their number, not their sizes; one of them is joined with nothing."""
    b = Builder(0, opset=18)
    b.op("Split", b.conv("image", 2, 18), outputs=3, axis=1, num_outputs=3)
    one, two, three = b.outputs_of_last()
    x = b.op("Concat", b.op("Mul", one, b.op("Sigmoid", two)), three, axis=1)
    return classified(b, b.conv(x, 12, 6), 6)


def squeeze_and_excitation() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Relu", b.conv("image", 2, 8))
    gate = b.op("Relu", b.conv(b.op("GlobalAveragePool", x), 8, 4, k=1))
    gate = b.op("Sigmoid", b.conv(gate, 4, 8, k=1))
    return classified(b, b.op("Mul", x, gate), 8)


def channel_attention_over_space() -> onnx.ModelProto:
    """CBAM: the mean and the largest of all channels weigh each place."""
    b = Builder(0)
    x = b.op("Relu", b.conv("image", 2, 8))
    found = [b.op(kind, x, axes=[1], keepdims=1) for kind in ("ReduceMean", "ReduceMax")]
    gate = b.op("Sigmoid", b.conv(b.op("Concat", *found, axis=1), 2, 1, k=7))
    return classified(b, b.op("Mul", x, gate), 8)


def upsampling(*, by_sizes: bool) -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Relu", b.conv("image", 2, 6))
    none = b.constant("none", np.zeros(0, np.float32))
    scales = b.constant("scales", np.array([1, 1, 2, 2], np.float32))
    batch = b.op("Slice", b.op("Shape", x), b.ints(0), b.ints(1))
    sizes = b.op("Concat", batch, b.ints(6, 16, 16), axis=0)
    told = [none, none, sizes] if by_sizes else [none, scales]
    x = b.op("Resize", x, *told, mode="linear")
    return classified(b, b.conv(x, 6, 8), 8)


def slices() -> onnx.ModelProto:
    b = Builder(0)
    x = b.conv("image", 2, 12)
    first = b.op("Slice", x, b.ints(0), b.ints(5), b.ints(1))
    rest = b.op("Slice", x, b.ints(-7), b.ints(2**40), b.ints(-3))
    return classified(b, b.op("Concat", b.op("Relu", rest), first, axis=1), 12)


def gathered() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Gather", b.conv("image", 2, 8), b.ints(-1, 1, 2, 0, 5), axis=1)
    return classified(b, x, 5)


def one_channel_picked() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Relu", b.conv("image", 2, 8))
    gate = b.op("Gather", x, b.ints(3), axis=1)
    return classified(b, b.op("Mul", x, b.op("Sigmoid", gate)), 8)


def scaled_and_shifted() -> onnx.ModelProto:
    """Layer scale, a bias that is broadcast, PRelu and Clip."""
    b = Builder(0)
    x = b.conv("image", 2, 6, bias=False)
    for kind in ("Mul", "Add", "PRelu"):
        x = b.op(kind, x, b.random("gain", 6, 1, 1, fan_in=1))
    x = b.op("Clip", x, _scalar(b, -1.0), _scalar(b, 6.0))
    return classified(b, b.conv(x, 6, 8), 8)


def dense_connections() -> onnx.ModelProto:
    b = Builder(0)
    x, width = b.conv("image", 2, 6), 6
    for _ in range(3):
        grown = b.conv(b.op("Relu", b.batch_norm(x, width)), width, 4)
        x, width = b.op("Concat", x, grown, axis=1), width + 4
    return classified(b, x, width)


def pooling() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("MaxPool", b.conv("image", 2, 6), kernel_shape=[2, 2], strides=[2, 2])
    x = b.op("AveragePool", b.conv(x, 6, 8), kernel_shape=[2, 2], strides=[2, 2])
    x = b.op("Add", b.op("GlobalMaxPool", x), b.op("ReduceMean", x, axes=[2, 3]))
    return b.model(IMAGE, b.gemm(b.op("Flatten", x, axis=1), 8, nets.CLASSES))


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    **{
        build.__name__: build
        for build in (
            concatenation,
            concatenation_with_itself,
            sum_of_branches,
            residual_chain,
            flatten_to_linear,
            hard_coded_view,
            view_of_the_batch,
            grouped_convolution,
            depthwise_convolution,
            transposed_convolution,
            grouped_transposed_convolution,
            group_normalization,
            group_normalization_of_one,
            group_normalization_as_exported,
            instance_normalization,
            channels_first_layer_norm,
            pixel_shuffle_by_reshape,
            pixel_unshuffle,
            channel_shuffle,
            one_convolution_twice,
            padded_shortcut,
            padding_of_space,
            gated_linear_unit,
            chunks,
            squeeze_and_excitation,
            channel_attention_over_space,
            slices,
            gathered,
            one_channel_picked,
            scaled_and_shifted,
            dense_connections,
            pooling,
        )
    },
    "pixel_shuffle_columns_first": lambda: pixel_shuffle("CRD"),
    "pixel_shuffle_depth_first": lambda: pixel_shuffle("DCR"),
    "padding_with_zeros": lambda: padding_of_channels(0.0),
    "padding_with_ones": lambda: padding_of_channels(1.0),
    "upsampling_by_scales": lambda: upsampling(by_sizes=False),
    "upsampling_by_sizes": lambda: upsampling(by_sizes=True),
}
