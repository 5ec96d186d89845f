"""Tiny real networks, one of each kind that people upload, built without torch.

`NETS` maps a name to a function of a seed that answers an ONNX model with a dynamic batch.
`feeds(model, batch, seed)` makes inputs for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 10


class Builder:
    """Writes nodes one after another; names are the operator's with a number."""

    def __init__(self, seed: int, *, opset: int = 17) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.count = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes) -> str:
        names = [self.name(kind.lower()) for _ in range(outputs)]
        node = helper.make_node(
            kind, list(inputs), names, name=names[0].replace(kind.lower(), kind)
        )
        node.attribute.extend(
            helper.make_attribute(k, v) for k, v in sorted(attributes.items()) if v is not None
        )
        self.nodes.append(node)
        return names[0]

    def outputs_of_last(self) -> list[str]:
        return list(self.nodes[-1].output)

    def constant(self, stem: str, array: np.ndarray) -> str:
        name = self.name(stem)
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant("ints", np.array(values, dtype=np.int64))

    def random(self, stem: str, *shape: int, fan_in: int | None = None) -> str:
        fan = fan_in or int(np.prod(shape[1:])) or 1
        array = self.rng.normal(0, (2 / fan) ** 0.5, shape).astype(np.float32)
        return self.constant(stem, array)

    def bias(self, size: int) -> str:
        return self.constant("bias", self.rng.normal(0, 0.1, size).astype(np.float32))

    def conv(
        self,
        x: str,
        cin: int,
        cout: int,
        k: int = 3,
        *,
        group: int = 1,
        stride: int = 1,
        bias: bool = True,
    ) -> str:
        w = self.random("weight", cout, cin // group, k, k)
        operands = [x, w] + ([self.bias(cout)] if bias else [])
        pad = k // 2
        return self.op(
            "Conv",
            *operands,
            kernel_shape=[k, k],
            pads=[pad] * 4,
            strides=[stride] * 2,
            group=group,
        )

    def batch_norm(self, x: str, channels: int) -> str:
        scale = self.constant("scale", self.rng.uniform(0.5, 1.5, channels).astype(np.float32))
        mean = self.constant("mean", self.rng.normal(0, 0.2, channels).astype(np.float32))
        var = self.constant("var", self.rng.uniform(0.5, 1.5, channels).astype(np.float32))
        return self.op("BatchNormalization", x, scale, self.bias(channels), mean, var)

    def gemm(self, x: str, fan_in: int, fan_out: int) -> str:
        w = self.random("weight", fan_out, fan_in)
        return self.op("Gemm", x, w, self.bias(fan_out), transB=1)

    def dense(self, x: str, fan_in: int, fan_out: int) -> str:
        w = self.random("weight", fan_in, fan_out, fan_in=fan_in)
        return self.op("Add", self.op("MatMul", x, w), self.bias(fan_out))

    def pooled_classifier(self, x: str, channels: int) -> str:
        pooled = self.op("Flatten", self.op("GlobalAveragePool", x), axis=1)
        return self.gemm(pooled, channels, CLASSES)

    def model(
        self,
        inputs: Sequence[tuple[str, int, Sequence[int | str]]],
        output: str,
        shape: Sequence[int | str] = ("batch", CLASSES),
    ) -> onnx.ModelProto:
        self.nodes.append(
            helper.make_node("Identity", [output], ["logits"], name="Identity_logits")
        )
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(n, t, list(s)) for n, t, s in inputs],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, list(shape))],
            self.weights,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], producer_name="nets"
        )
        model.ir_version = 8
        onnx.checker.check_model(model)
        return model


def _image(size: int = 8, channels: int = 1) -> list[tuple[str, int, list[int | str]]]:
    return [("image", TensorProto.FLOAT, ["batch", channels, size, size])]


def plain_cnn(seed: int = 0) -> onnx.ModelProto:
    """Conv-BN-Relu twice, max pooling, two Gemm."""
    b = Builder(seed)
    x = b.op("Relu", b.batch_norm(b.conv("image", 1, 8, bias=False), 8))
    x = b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = b.op("Relu", b.batch_norm(b.conv(x, 8, 16), 16))
    x = b.op("Flatten", x, axis=1)
    x = b.op("Relu", b.gemm(x, 256, 32))
    return b.model(_image(), b.gemm(x, 32, CLASSES))


def residual_cnn(seed: int = 0) -> onnx.ModelProto:
    """Two residual blocks, the second with a strided 1x1 shortcut."""
    b = Builder(seed)
    x = b.op("Relu", b.batch_norm(b.conv("image", 1, 8), 8))
    y = b.op("Relu", b.batch_norm(b.conv(x, 8, 8), 8))
    x = b.op("Relu", b.op("Add", b.batch_norm(b.conv(y, 8, 8), 8), x))
    y = b.op("Relu", b.batch_norm(b.conv(x, 8, 16, stride=2), 16))
    y = b.batch_norm(b.conv(y, 16, 16), 16)
    x = b.op("Relu", b.op("Add", y, b.batch_norm(b.conv(x, 8, 16, k=1, stride=2), 16)))
    return b.model(_image(), b.pooled_classifier(x, 16))


def depthwise_cnn(seed: int = 0) -> onnx.ModelProto:
    """Inverted residual: 1x1, depthwise 3x3, squeeze and excite, 1x1; Relu6 as Clip."""
    b = Builder(seed)
    low, high = (b.constant("bound", np.array(v, np.float32)) for v in (0, 6))
    x = b.op("Clip", b.batch_norm(b.conv("image", 1, 8), 8), low, high)
    y = b.op("Clip", b.batch_norm(b.conv(x, 8, 24, k=1), 24), low, high)
    y = b.op("Clip", b.batch_norm(b.conv(y, 24, 24, group=24), 24), low, high)
    gate = b.op("ReduceMean", y, axes=[2, 3], keepdims=1)
    gate = b.op("HardSigmoid", b.conv(b.op("Relu", b.conv(gate, 24, 6, k=1)), 6, 24, k=1))
    y = b.batch_norm(b.conv(b.op("Mul", y, gate), 24, 8, k=1), 8)
    return b.model(_image(), b.pooled_classifier(b.op("Add", x, y), 8))


def grouped_cnn(seed: int = 0) -> onnx.ModelProto:
    """Grouped convolutions with a channel shuffle between them, average pooling."""
    b = Builder(seed)
    x = b.op("Relu", b.conv("image", 1, 8))
    x = b.op("Relu", b.conv(x, 8, 16, group=4))
    x = b.op("Reshape", x, b.ints(0, 4, 4, 8, 8))
    x = b.op("Reshape", b.op("Transpose", x, perm=[0, 2, 1, 3, 4]), b.ints(0, 16, 8, 8))
    x = b.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = b.op("LeakyRelu", b.conv(x, 16, 16, group=4), alpha=0.1)
    return b.model(_image(), b.pooled_classifier(x, 16))


def concat_cnn(seed: int = 0) -> onnx.ModelProto:
    """Dense block: each convolution reads all before it; one branch pooled and resized back."""
    b = Builder(seed)
    x = b.op("Relu", b.conv("image", 1, 8))
    y = b.op("Concat", x, b.op("Relu", b.conv(x, 8, 4)), axis=1)
    y = b.op("Concat", y, b.op("Relu", b.conv(y, 12, 4)), axis=1)
    small = b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    scales = b.constant("scales", np.array([1, 1, 2, 2], np.float32))
    large = b.op(
        "Resize",
        small,
        "",
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    y = b.op("Concat", y, large, axis=1)
    return b.model(_image(), b.pooled_classifier(b.op("Relu", b.conv(y, 32, 16)), 16))


def upsampling_cnn(seed: int = 0) -> onnx.ModelProto:
    """Encoder and decoder with ConvTranspose and InstanceNormalization; answers an image."""
    b = Builder(seed)
    x = b.op("Relu", b.conv("image", 1, 8, stride=2))
    scale = b.constant("scale", b.rng.uniform(0.5, 1.5, 8).astype(np.float32))
    x = b.op("InstanceNormalization", x, scale, b.bias(8))
    w = b.random("weight", 8, 4, 2, 2)
    x = b.op("ConvTranspose", x, w, b.bias(4), kernel_shape=[2, 2], strides=[2, 2])
    slope = b.constant("slope", np.full((4, 1, 1), 0.2, np.float32))
    x = b.op("Sigmoid", b.conv(b.op("PRelu", x, slope), 4, 1))
    return b.model(_image(), x, ("batch", 1, 8, 8))


def mlp(seed: int = 0) -> onnx.ModelProto:
    """Three Gemm with Relu and Tanh."""
    b = Builder(seed)
    x = b.op("Relu", b.gemm("x", 64, 48))
    x = b.op("Tanh", b.gemm(x, 48, 32))
    return b.model([("x", TensorProto.FLOAT, ["batch", 64])], b.gemm(x, 32, CLASSES))


def matmul_mlp(seed: int = 0) -> onnx.ModelProto:
    """MatMul and Add instead of Gemm, with Dropout and a normalised input."""
    b = Builder(seed)
    mean = b.constant("offset", b.rng.normal(0, 0.1, 64).astype(np.float32))
    x = b.op("Sub", "x", mean)
    x = b.op("Relu", b.dense(x, 64, 48))
    x = b.op("Dropout", x, b.constant("ratio", np.array(0.2, np.float32)))
    return b.model([("x", TensorProto.FLOAT, ["batch", 64])], b.dense(x, 48, CLASSES))


def _layer_norm(b: Builder, x: str, width: int) -> str:
    scale = b.constant("scale", b.rng.uniform(0.5, 1.5, width).astype(np.float32))
    return b.op("LayerNormalization", x, scale, b.bias(width), axis=-1, epsilon=1e-5)


def _gelu(b: Builder, x: str) -> str:
    """As exporters write it: x * 0.5 * (1 + erf(x / sqrt(2)))."""
    root, one, half = (b.constant("number", np.array(v, np.float32)) for v in (2**0.5, 1, 0.5))
    inner = b.op("Add", b.op("Erf", b.op("Div", x, root)), one)
    return b.op("Mul", b.op("Mul", x, inner), half)


def _heads(b: Builder, x: str, heads: int, size: int) -> str:
    """[N, T, heads * size] to [N, heads, T, size] by a shape that is computed."""
    shape = b.op("Shape", x)
    lead = b.op("Slice", shape, b.ints(0), b.ints(2), b.ints(0))
    wanted = b.op("Concat", lead, b.ints(heads, size), axis=0)
    return b.op("Transpose", b.op("Reshape", x, wanted), perm=[0, 2, 1, 3])


def _attention(b: Builder, x: str, width: int, heads: int) -> str:
    size = width // heads
    q, k, v = (_heads(b, b.dense(x, width, width), heads, size) for _ in range(3))
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2]))
    scale = b.constant("number", np.array(size**0.5, np.float32))
    weights = b.op("Softmax", b.op("Div", scores, scale), axis=-1)
    mixed = b.op("Transpose", b.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    return b.dense(b.op("Reshape", mixed, b.ints(0, 0, width)), width, width)


def _encoder_block(b: Builder, x: str, width: int) -> str:
    x = b.op("Add", x, _attention(b, _layer_norm(b, x, width), width, 4))
    y = b.dense(_layer_norm(b, x, width), width, 2 * width)
    return b.op("Add", x, b.dense(_gelu(b, y), 2 * width, width))


def vision_transformer(seed: int = 0) -> onnx.ModelProto:
    """Patches by a convolution, position embeddings, two encoder blocks, mean of tokens."""
    b = Builder(seed)
    w = b.random("weight", 16, 1, 2, 2)
    x = b.op("Conv", "image", w, b.bias(16), kernel_shape=[2, 2], strides=[2, 2])
    x = b.op("Transpose", b.op("Reshape", x, b.ints(0, 16, 16)), perm=[0, 2, 1])
    x = b.op("Add", x, b.constant("position", b.rng.normal(0, 0.1, (1, 16, 16)).astype(np.float32)))
    for _ in range(2):
        x = _encoder_block(b, x, 16)
    x = b.op("ReduceMean", _layer_norm(b, x, 16), axes=[1], keepdims=0)
    return b.model(_image(), b.gemm(x, 16, CLASSES))


def text_transformer(seed: int = 0) -> onnx.ModelProto:
    """Token ids to classes: an embedding table, one encoder block, the first token."""
    b = Builder(seed)
    table = b.constant("embedding", b.rng.normal(0, 0.5, (50, 16)).astype(np.float32))
    x = b.op("Gather", table, "tokens", axis=0)
    x = b.op("Add", x, b.constant("position", b.rng.normal(0, 0.1, (1, 12, 16)).astype(np.float32)))
    x = _layer_norm(b, _encoder_block(b, x, 16), 16)
    first = b.op("Gather", x, b.constant("first", np.array(0, np.int64)), axis=1)
    return b.model([("tokens", TensorProto.INT64, ["batch", 12])], b.dense(first, 16, CLASSES))


def two_inputs(seed: int = 0) -> onnx.ModelProto:
    """An image and a vector of features, joined."""
    b = Builder(seed)
    x = b.op("Relu", b.conv("image", 1, 8))
    x = b.op("Flatten", b.op("GlobalAveragePool", x), axis=1)
    y = b.op("Relu", b.gemm("features", 5, 8))
    joined = b.op("Concat", x, y, axis=1)
    inputs = [*_image(), ("features", TensorProto.FLOAT, ["batch", 5])]
    return b.model(inputs, b.gemm(joined, 16, CLASSES))


def channels_last_cnn(seed: int = 0) -> onnx.ModelProto:
    """As converters from channels-last frameworks write it: Transpose around each convolution."""
    b = Builder(seed)
    x = b.op("Transpose", "image", perm=[0, 3, 1, 2])
    w = b.random("weight", 8, 1, 3, 3)
    x = b.op("Relu", b.op("Conv", x, w, b.bias(8), auto_pad="SAME_UPPER", strides=[2, 2]))
    x = b.op("Transpose", x, perm=[0, 2, 3, 1])
    x = b.op("Mul", x, b.constant("gain", b.rng.uniform(0.5, 1.5, 8).astype(np.float32)))
    x = b.op("ReduceMean", x, axes=[1, 2], keepdims=0)
    image = [("image", TensorProto.FLOAT, ["batch", 8, 8, 1])]
    return b.model(image, b.op("Softmax", b.dense(x, 8, CLASSES), axis=-1))


NETS: dict[str, Callable[[int], onnx.ModelProto]] = {
    build.__name__: build
    for build in (
        plain_cnn,
        residual_cnn,
        depthwise_cnn,
        grouped_cnn,
        concat_cnn,
        upsampling_cnn,
        mlp,
        matmul_mlp,
        vision_transformer,
        text_transformer,
        two_inputs,
        channels_last_cnn,
    )
}

CLASSIFIERS = tuple(name for name in NETS if name != "upsampling_cnn")
"""Nets whose output is a vector of classes."""


def feeds(model: onnx.ModelProto, batch: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs for a model: normal noise, or token ids below 50."""
    rng = np.random.default_rng(seed)
    made = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = [dim.dim_value or batch for dim in dims]
        if value.type.tensor_type.elem_type == TensorProto.INT64:
            made[value.name] = rng.integers(0, 50, shape)
        else:
            made[value.name] = rng.normal(0, 1, shape).astype(np.float32)
    return made
