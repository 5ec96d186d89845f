"""The blocks of small architectures, in the place of one convolution, and what they cost in closed form.

A place has I inputs, O outputs and a window of K elements; P0 and P are the positions of its map before and behind.

    block               multiply-accumulates                        with
    fire                I s P0 + s e1 P + s e3 K P                  s = squeeze O, e1 + e3 = O
    inverted_residual   I h P0 + h K P + h O P                      h = expansion I; without the first where h = I
    shuffle             I m P0 / g + m K P + m B P / g              m about O / 4; B = O, or O - I where the input passes beside
    separable           I K P + I O P
    ghost               I p K P + p (r - 1) 9 P                     p = ceil(O / r)

The activation behind the convolution stays, and with fire, which has biases, its normalization.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from workers.engine.graph.build import Builder

_CHEAP = 3
"""Size of the window that makes further maps from one."""
_BOTTLENECK = 4
"""How many times fewer channels are inside a shuffle unit (section 4.1 of its paper)."""


Tail = Literal["norm", "bias", "none"]
"""What a convolution has behind it."""


@dataclass(frozen=True)
class Place:
    """Where a block goes."""

    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    """Before both axes, then behind them."""
    dilations: tuple[int, ...]
    before: int
    """Positions of the map that goes in; of all samples, where the model fixes how many."""
    after: int
    tail: Tail

    @property
    def window(self) -> int:
        """Elements of it."""
        return math.prod(self.kernel)

    @property
    def keeps_size(self) -> bool:
        """Whether at stride 1 the map would stay as large."""
        reach = [d * (k - 1) for k, d in zip(self.kernel, self.dilations, strict=True)]
        return all(r == 2 * p for r, p in zip(reach * 2, self.pads, strict=True))

    def parameters_behind(self, channels: int) -> int:
        """Of the normalization or the bias of so many channels."""
        return {"norm": 2, "bias": 1, "none": 0}[self.tail] * channels


class Unit(ABC):
    """A kind of block."""

    owns_norm = True
    """Whether its last layer takes the place of a normalization that follows."""

    def why_not(self, place: Place) -> str:
        """Why it can't be there; '' where it can."""
        return ""

    @abstractmethod
    def build(self, b: Builder, x: ir.Value, place: Place) -> ir.Value:
        """Its layers, from the input of the convolution to what it answered before an activation."""

    @abstractmethod
    def macs(self, place: Place) -> int:
        """Multiply-accumulates over the positions of the place."""

    @abstractmethod
    def parameters(self, place: Place) -> int:
        """Weights, with those of normalizations and biases."""


@dataclass(frozen=True)
class Fire(Unit):
    """SqueezeNet, section 3.2."""

    squeeze: float
    owns_norm = False

    def why_not(self, place: Place) -> str:
        if not place.keeps_size:
            return "its padding would make the 1x1 and the larger window of a Fire module differ in size"
        return "one output can't be halved" if place.outputs < 2 else ""

    def build(self, b: Builder, x: ir.Value, place: Place) -> ir.Value:
        s, e1, e3 = self._sizes(place)
        x = b.relu(b.conv(x, s, 1, bias=True, name="squeeze"))
        ones = b.conv(x, e1, 1, stride=place.strides, bias=True, name="expand1")
        return b.concat(ones, _windowed(b, x, e3, place, bias=True, name="expand3"))

    def macs(self, place: Place) -> int:
        s, e1, e3 = self._sizes(place)
        return place.inputs * s * place.before + s * (e1 + e3 * place.window) * place.after

    def parameters(self, place: Place) -> int:
        s, e1, e3 = self._sizes(place)
        own = place.inputs * s + s + s * (e1 + e3 * place.window) + e1 + e3
        return own + (place.parameters_behind(place.outputs) if place.tail == "norm" else 0)

    def _sizes(self, place: Place) -> tuple[int, int, int]:
        ones = place.outputs // 2
        return max(1, round(self.squeeze * place.outputs)), ones, place.outputs - ones


@dataclass(frozen=True)
class InvertedResidual(Unit):
    """MobileNet v2, section 3.3."""

    expansion: float

    def build(self, b: Builder, x: ir.Value, place: Place) -> ir.Value:
        h, y = self._inner(place), x
        if h != place.inputs:
            y = b.relu6(b.batch_norm(b.conv(y, h, 1, name="expand")))
        y = b.relu6(b.batch_norm(_windowed(b, y, h, place, groups=h, name="depthwise")))
        y = b.batch_norm(b.conv(y, place.outputs, 1, name="project"))
        is_residual = _passes(place) and place.inputs == place.outputs
        return b.add(x, y) if is_residual else y

    def macs(self, place: Place) -> int:
        h = self._inner(place)
        first = 0 if h == place.inputs else place.inputs * h * place.before
        return first + h * (place.window + place.outputs) * place.after

    def parameters(self, place: Place) -> int:
        h = self._inner(place)
        first = 0 if h == place.inputs else (place.inputs + 2) * h
        return first + h * (place.window + 2) + h * place.outputs + 2 * place.outputs

    def _inner(self, place: Place) -> int:
        return max(1, round(self.expansion * place.inputs))


@dataclass(frozen=True)
class Shuffle(Unit):
    """ShuffleNet, figure 2: beside the input where sizes allow it, added to it or joined with it."""

    groups: int

    def why_not(self, place: Place) -> str:
        if self._groups(place) < 2:
            return f"no number of groups from 2 to {self.groups} divides its {place.inputs} inputs and {self._made(place)} outputs"
        return ""

    def build(self, b: Builder, x: ir.Value, place: Place) -> ir.Value:
        g, m = self._groups(place), self._inner(place)
        y = b.relu(b.batch_norm(b.conv(x, m, 1, groups=g, name="squeeze")))
        y = b.batch_norm(_windowed(b, b.shuffle(y, g), m, place, groups=m, name="depthwise"))
        y = b.batch_norm(b.conv(y, self._made(place), 1, groups=g, name="expand"))
        if not _joins(place):
            return b.add(x, y) if _passes(place) and place.inputs == place.outputs else y
        return b.concat(x if _passes(place) else _pooled(b, x, place), y)

    def macs(self, place: Place) -> int:
        g, m = self._groups(place), self._inner(place)
        ends = place.inputs * m * place.before + m * self._made(place) * place.after
        return ends // g + m * place.window * place.after

    def parameters(self, place: Place) -> int:
        g, m, made = self._groups(place), self._inner(place), self._made(place)
        return m * (place.inputs + made) // g + m * place.window + 2 * (2 * m + made)

    def _made(self, place: Place) -> int:
        """Channels that are computed; the input passes as the others."""
        return place.outputs - place.inputs if _joins(place) else place.outputs

    def _groups(self, place: Place) -> int:
        both = math.gcd(place.inputs, self._made(place))
        return max(g for g in range(1, self.groups + 1) if both % g == 0)

    def _inner(self, place: Place) -> int:
        g = self._groups(place)
        return max(1, round(place.outputs / _BOTTLENECK / g)) * g


@dataclass(frozen=True)
class Separable(Unit):
    """Xception, section 3: no non-linearity between the two."""

    def build(self, b: Builder, x: ir.Value, place: Place) -> ir.Value:
        y = _windowed(b, x, place.inputs, place, groups=place.inputs, name="depthwise")
        y = b.conv(y, place.outputs, 1, bias=place.tail == "bias", name="pointwise")
        return b.batch_norm(y) if place.tail == "norm" else y

    def macs(self, place: Place) -> int:
        return place.inputs * (place.window + place.outputs) * place.after

    def parameters(self, place: Place) -> int:
        own = place.inputs * (place.window + place.outputs)
        return own + place.parameters_behind(place.outputs)


@dataclass(frozen=True)
class Ghost(Unit):
    """GhostNet, section 3.1: maps that are left over are sliced off."""

    ratio: int

    def build(self, b: Builder, x: ir.Value, place: Place) -> ir.Value:
        p, biased = self._primary(place), place.tail == "bias"
        y = _windowed(b, x, p, place, bias=biased, name="primary")
        y = b.batch_norm(y, name="primary.norm") if place.tail == "norm" else y
        z = b.conv(y, p * (self.ratio - 1), _CHEAP, groups=p, bias=biased, name="cheap")
        z = b.batch_norm(z, name="cheap.norm") if place.tail == "norm" else z
        joined = b.concat(y, z)
        is_whole = b.channels(joined) == place.outputs
        return joined if is_whole else b.take(joined, 0, place.outputs)

    def macs(self, place: Place) -> int:
        p = self._primary(place)
        return p * (place.inputs * place.window + (self.ratio - 1) * _CHEAP**2) * place.after

    def parameters(self, place: Place) -> int:
        p = self._primary(place)
        own = p * (place.inputs * place.window + (self.ratio - 1) * _CHEAP**2)
        return own + place.parameters_behind(p * self.ratio)

    def _primary(self, place: Place) -> int:
        return math.ceil(place.outputs / self.ratio)


def _windowed(
    b: Builder,
    x: ir.Value,
    out: int,
    place: Place,
    *,
    groups: int = 1,
    bias: bool = False,
    name: str,
) -> ir.Value:
    """A convolution with the window of the place."""
    return b.conv(
        x,
        out,
        place.kernel,
        stride=place.strides,
        pad=place.pads,
        dilation=place.dilations,
        groups=groups,
        bias=bias,
        name=name,
    )


def _passes(place: Place) -> bool:
    """Whether the input can be beside the output as it is."""
    return place.keeps_size and set(place.strides) == {1}


def _joins(place: Place) -> bool:
    """Whether the input, pooled where there is a stride, can be a part of the output."""
    can_pool = set(place.dilations) == {1} and _fits(place.pads, place.kernel)
    return place.outputs > place.inputs and (_passes(place) or can_pool)


def _fits(pads: Sequence[int], kernel: Sequence[int]) -> bool:
    """Whether each window of a pool has an element inside the map."""
    return all(pad < size for pad, size in zip(pads, [*kernel, *kernel], strict=True))


def _pooled(b: Builder, x: ir.Value, place: Place) -> ir.Value:
    attributes = {"kernel_shape": place.kernel, "strides": place.strides, "pads": place.pads}
    return b.op("AveragePool", [x], b.channels(x), attributes=attributes, name="beside")
