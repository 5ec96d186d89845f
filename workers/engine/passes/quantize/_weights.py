"""Constants of a layer as integers with a DequantizeLinear behind them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from workers.engine.passes.quantize import _affine, _prepare
from workers.engine.passes.quantize._builder import Builder
from workers.engine.passes.quantize._targets import Target


@dataclass(frozen=True)
class Layer:
    """A layer and the codes that will take the place of its weight."""

    target: Target
    codes: _affine.Weight
    limit: int
    """Largest magnitude of a code."""
    input: _affine.Activation | None
    """Codes of what it reads; None where that stays float, or has a range of its own in each run."""


class Weights:
    """Replaces weights and biases; a weight that several layers share is stored once.

    `per_channel`: kinds of layers whose weights have a scale for each output channel.
    """

    def __init__(
        self, builder: Builder, *, per_channel: Collection[str], integer_biases: bool = True
    ) -> None:
        self._builder, self._per_channel = builder, per_channel
        self._integer_biases = integer_biases
        self._stored: dict[tuple[str, int | None, bytes], tuple[ir.Value, ir.Value, ir.Value]] = {}

    def encode(self, target: Target, limit: int, given: _affine.Activation | None) -> Layer:
        """The codes of the weight, wide enough for its bias where that is added to integers."""
        values = np.asarray(self._builder.graph.weight(target.weight), dtype=np.float32)
        by_channel = target.kind in self._per_channel and (
            target.kind != "MatMul" or values.ndim == 2
        )
        axis = target.axis if by_channel else None
        floor = None
        if target.bias is not None and given is not None:
            floor = _affine.scale_floor(self._bias(target), given.scale)
        return Layer(target, _affine.weight(values, axis, limit, floor), limit, given)

    def replace(self, layer: Layer) -> None:
        """Gives the node int8 weights, and where its input is codes a bias in the units of their products.

        That is int32, or float of whole units: ONNX Runtime makes integers of it anyway.
        """
        target, codes = layer.target, layer.codes
        stored, scale, zero = self.store(target, codes)
        self._attach(target, 1, stored, scale, zero, codes.axis)
        if target.bias is not None and layer.input is not None:
            self._replace_bias(target, layer.input.scale, codes.scale)

    def store(self, target: Target, codes: _affine.Weight) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The codes, their scale and zero point as initializers."""
        key = (target.weight, codes.axis, codes.scale.tobytes())
        if key not in self._stored:
            constant, name = self._builder.constant, target.weight
            self._stored[key] = (
                constant(f"{name}_int8", codes.codes),
                constant(f"{name}_scale", codes.scale),
                self._builder.zeros(codes.scale.shape, np.int8),
            )
        return self._stored[key]

    def _bias(self, target: Target) -> np.ndarray:
        return np.asarray(_prepare.array(target.bias), dtype=np.float32)

    def _replace_bias(
        self, target: Target, input_scale: np.float32, weight_scale: np.ndarray
    ) -> None:
        assert target.bias is not None
        codes, units = _affine.bias_codes(self._bias(target), input_scale, weight_scale)
        constant, name = self._builder.constant, target.bias.name
        if not self._integer_biases:
            rounded = (codes * units.astype(np.float64)).astype(np.float32)
            target.node.replace_input_with(2, constant(f"{name}_rounded", rounded))
            return
        stored = constant(f"{name}_int32", codes)
        zero = self._builder.zeros(units.shape, np.int32)
        self._attach(target, 2, stored, constant(f"{name}_scale", units), zero, 0)

    def _attach(
        self,
        target: Target,
        index: int,
        stored: ir.Value,
        scale: ir.Value,
        zero: ir.Value,
        axis: int | None,
    ) -> None:
        attributes = {"axis": axis} if axis is not None else None
        like = target.node.inputs[index]
        name = f"{stored.name}_dq"
        node = self._builder.node(
            "DequantizeLinear", [stored, scale, zero], name, attributes=attributes, like=like
        )
        self._builder.insert_before(target.node, node)
        target.node.replace_input_with(index, node.outputs[0])


def describe(layer: Layer) -> str:
    """What was done to a weight, for the report."""
    codes = layer.codes
    bits = "int8" if layer.limit == _affine.FULL_RANGE else "int8 (7 bits used)"
    scales = "per tensor" if codes.axis is None else f"per channel ({codes.scale.size})"
    return f"{codes.codes.size:,} weights in {bits}, one scale {scales}"
