"""Networks put together of random blocks: each block takes a value and answers another, drawn by a generator of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto

from tests.engine import nets
from tests.engine.graph.channels import token_nets
from tests.engine.nets import Builder


@dataclass
class Net:
    """What was built so far. Images are [N, width, size, size], tokens [N, LENGTH, width]."""

    b: Builder
    rng: np.random.Generator
    x: str
    width: int
    size: int = 1
    before: list[tuple[str, int, int]] = field(default_factory=list)
    """Earlier values with their width and size."""

    def then(self, x: str, width: int | None = None, size: int | None = None) -> None:
        self.before.append((self.x, self.width, self.size))
        self.x, self.width, self.size = x, width or self.width, size or self.size

    def new_width(self) -> int:
        return int(self.rng.integers(2, 10))

    def pick(self, among: Sequence[int]) -> int:
        return int(self.rng.choice(list(among)))

    def divisor(self) -> int:
        return self.pick([d for d in range(1, self.width + 1) if self.width % d == 0])

    def uniform(self, *shape: int) -> str:
        return self.b.constant("scale", self.rng.uniform(0.5, 1.5, shape).astype(np.float32))


def conv(n: Net) -> None:
    width, k = n.new_width(), n.pick([1, 3])
    n.then(n.b.conv(n.x, n.width, width, k, bias=bool(n.rng.integers(2))), width)


def strided(n: Net) -> None:
    width = n.new_width()
    n.then(n.b.conv(n.x, n.width, width, stride=2), width, (n.size + 1) // 2)


def grouped(n: Net) -> None:
    group = n.divisor()
    width = group * n.pick([1, 2, 3])
    n.then(n.b.conv(n.x, n.width, width, group=group), width)


def depthwise(n: Net) -> None:
    width = n.width * n.pick([1, 2])
    n.then(n.b.conv(n.x, n.width, width, group=n.width), width)


def transposed(n: Net) -> None:
    width = n.new_width()
    w = n.b.random("weight", n.width, width, 2, 2)
    n.then(
        n.b.op("ConvTranspose", n.x, w, n.b.bias(width), strides=[2, 2]), width, min(2 * n.size, 99)
    )


def batch_norm(n: Net) -> None:
    n.then(n.b.batch_norm(n.x, n.width))


def instance_norm(n: Net) -> None:
    """Of an epsilon that keeps channels of one value from becoming noise."""
    operands = n.x, n.uniform(n.width), n.b.bias(n.width)
    n.then(n.b.op("InstanceNormalization", *operands, epsilon=1e-2))


def group_norm(n: Net) -> None:
    x = n.b.op(
        "GroupNormalization",
        n.x,
        n.uniform(n.width),
        n.b.bias(n.width),
        num_groups=n.divisor(),
        epsilon=1e-2,
    )
    n.then(x)


def activation(n: Net) -> None:
    kinds = ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Softplus")
    n.then(n.b.op(str(n.rng.choice(kinds)), n.x))


def residual(n: Net) -> None:
    inner = n.new_width()
    x = n.b.op("Relu", n.b.conv(n.x, n.width, inner))
    n.then(n.b.op("Add", n.x, n.b.conv(x, inner, n.width)))


def add_earlier(n: Net) -> None:
    fits = [x for x, width, size in n.before if (width, size) == (n.width, n.size)]
    if fits:
        n.then(n.b.op("Add", n.x, fits[n.pick(range(len(fits)))]))


def concat_earlier(n: Net) -> None:
    fits = [(x, width) for x, width, size in n.before if size == n.size and width < 20]
    if fits:
        x, width = fits[n.pick(range(len(fits)))]
        n.then(n.b.op("Concat", n.x, x, axis=1), n.width + width)


def split(n: Net) -> None:
    """Two parts, one of them through an activation, joined in the other order."""
    if n.width < 2:
        return
    first = n.pick(range(1, n.width))
    n.b.op("Split", n.x, n.b.ints(first, n.width - first), outputs=2, axis=1)
    one, two = n.b.outputs_of_last()
    n.then(n.b.op("Concat", n.b.op("Tanh", two), one, axis=1))


def gate(n: Net) -> None:
    if n.width % 2 == 0:
        n.b.op("Split", n.x, outputs=2, axis=1, num_outputs=2)
        value, gated = n.b.outputs_of_last()
        n.then(n.b.op("Mul", value, n.b.op("Sigmoid", gated)), n.width // 2)


def squeeze(n: Net) -> None:
    inner = n.new_width()
    found = n.b.conv(n.b.op("GlobalAveragePool", n.x), n.width, inner, k=1)
    found = n.b.conv(n.b.op("Relu", found), inner, n.width, k=1)
    n.then(n.b.op("Mul", n.x, n.b.op("HardSigmoid", found)))


def shuffle(n: Net) -> None:
    group = n.divisor()
    x = n.b.op("Reshape", n.x, n.b.ints(0, group, n.width // group, n.size, n.size))
    x = n.b.op("Transpose", x, perm=[0, 2, 1, 3, 4])
    n.then(n.b.op("Reshape", x, n.b.ints(-1, n.width, n.size, n.size)))


def pool(n: Net) -> None:
    if n.size > 1:
        kind = str(n.rng.choice(["MaxPool", "AveragePool"]))
        x = n.b.op(kind, n.x, kernel_shape=[2, 2], strides=[2, 2])
        n.then(x, n.width, n.size // 2)


def pixel_shuffle(n: Net) -> None:
    if n.width % 4 == 0 and n.size < 9:
        mode = str(n.rng.choice(["CRD", "DCR"]))
        n.then(n.b.op("DepthToSpace", n.x, blocksize=2, mode=mode), n.width // 4, 2 * n.size)


def pad_channels(n: Net) -> None:
    before, after = (int(i) for i in n.rng.integers(0, 3, 2))
    value = n.b.constant("number", np.array(n.rng.integers(2), np.float32))
    edges = n.b.ints(0, before, 0, 0, 0, after, 0, 0)
    n.then(n.b.op("Pad", n.x, edges, value), n.width + before + after)


def cut(n: Net) -> None:
    start = n.pick(range(n.width))
    x = n.b.op("Slice", n.x, n.b.ints(start), n.b.ints(2**40), n.b.ints(1))
    n.then(x, n.width - start)


def gather(n: Net) -> None:
    count = n.pick(range(1, n.width + 1))
    places = n.rng.permutation(n.width)[:count]
    n.then(n.b.op("Gather", n.x, n.b.ints(*places.tolist()), axis=1), count)


IMAGE_BLOCKS: dict[str, Callable[[Net], None]] = {
    block.__name__: block
    for block in (
        conv,
        strided,
        grouped,
        depthwise,
        transposed,
        batch_norm,
        instance_norm,
        group_norm,
        activation,
        residual,
        add_earlier,
        concat_earlier,
        split,
        gate,
        squeeze,
        shuffle,
        pool,
        pixel_shuffle,
        pad_channels,
        cut,
        gather,
    )
}

Drawn = Sequence[tuple[str, int]]
"""Names of blocks, each with the seed of its numbers."""


def image_net(drawn: Drawn) -> onnx.ModelProto:
    """A convolution, the blocks, a convolution and a classifier."""
    b = Builder(len(drawn), opset=21)
    n = Net(b, b.rng, b.conv("image", 2, 6), 6, 4)
    for name, seed in [*drawn, ("conv", 0)]:
        n.rng = np.random.default_rng(seed)
        IMAGE_BLOCKS[name](n)
    x = b.op("Flatten", n.x, axis=1)
    logits = b.gemm(x, n.width * n.size**2, nets.CLASSES)
    return b.model([("image", TensorProto.FLOAT, ["batch", 2, 4, 4])], logits)


def dense(n: Net) -> None:
    width = 2 * n.new_width()
    n.then(n.b.dense(n.x, n.width, width), width)


def feed_forward(n: Net) -> None:
    inner = n.new_width()
    x = n.b.op("Gelu", n.b.dense(n.x, n.width, inner))
    n.then(n.b.op("Add", n.x, n.b.dense(x, inner, n.width)))


def swiglu(n: Net) -> None:
    inner = n.new_width()
    gated, value = (n.b.dense(n.x, n.width, inner) for _ in range(2))
    x = n.b.op("Mul", n.b.op("Mul", gated, n.b.op("Sigmoid", gated)), value)
    n.then(n.b.dense(x, inner, n.width))


def layer_norm(n: Net) -> None:
    n.then(
        n.b.op(
            "LayerNormalization", n.x, n.uniform(n.width), n.b.bias(n.width), axis=-1, epsilon=1e-2
        )
    )


def attention(n: Net) -> None:
    heads, size = n.pick([1, 2, 3, 4]), n.pick([2, 3, 5])
    parts = []
    for _ in range(3):
        x = n.b.dense(n.x, n.width, heads * size)
        x = n.b.op("Reshape", x, n.b.ints(0, token_nets.LENGTH, heads, size))
        parts.append(n.b.op("Transpose", x, perm=[0, 2, 1, 3]))
    scores = n.b.op("MatMul", parts[0], n.b.op("Transpose", parts[1], perm=[0, 1, 3, 2]))
    mixed = n.b.op("MatMul", n.b.op("Softmax", scores, axis=-1), parts[2])
    mixed = n.b.op("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = n.b.op("Reshape", mixed, n.b.ints(0, 0, heads * size))
    n.then(n.b.op("Add", n.x, n.b.dense(mixed, heads * size, n.width)))


def mix_tokens(n: Net) -> None:
    inner = n.new_width()
    x = n.b.dense(n.b.op("Transpose", n.x, perm=[0, 2, 1]), token_nets.LENGTH, inner)
    x = n.b.dense(n.b.op("Relu", x), inner, token_nets.LENGTH)
    n.then(n.b.op("Add", n.x, n.b.op("Transpose", x, perm=[0, 2, 1])))


def lstm(n: Net) -> None:
    width = n.new_width()
    x = n.b.op("Transpose", n.x, perm=[1, 0, 2])
    weights = [n.b.random("weight", 1, 4 * width, fan) for fan in (n.width, width)]
    x = n.b.op("LSTM", x, *weights, hidden_size=width)
    n.then(n.b.op("Transpose", n.b.op("Squeeze", x, n.b.ints(1)), perm=[1, 0, 2]), width)


def scale(n: Net) -> None:
    n.then(n.b.op("Mul", n.x, n.uniform(n.width)))


def split_width(n: Net) -> None:
    half = n.width // 2
    n.b.op("Split", n.x, n.b.ints(half, n.width - half), outputs=2, axis=-1)
    one, two = n.b.outputs_of_last()
    n.then(n.b.op("Concat", n.b.op("Relu", two), one, two, axis=-1), 2 * n.width - half)


TOKEN_BLOCKS: dict[str, Callable[[Net], None]] = {
    block.__name__: block
    for block in (
        dense,
        feed_forward,
        swiglu,
        layer_norm,
        attention,
        mix_tokens,
        lstm,
        scale,
        split_width,
        activation,
    )
}


def token_net(drawn: Drawn) -> onnx.ModelProto:
    """A product, the blocks, the mean of all tokens and a classifier."""
    b = Builder(len(drawn), opset=21)
    n = Net(b, b.rng, b.dense("x", 8, 12), 12)
    for name, seed in drawn:
        n.rng = np.random.default_rng(seed)
        TOKEN_BLOCKS[name](n)
    x = b.op("ReduceMean", n.x, b.ints(1), keepdims=0)
    return b.model(token_nets.TOKENS, b.dense(x, n.width, nets.CLASSES))
