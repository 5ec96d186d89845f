"""Dynamic int8: weights are int8, the range of an activation is taken anew at each run. Needs no data.

    x -> Gemm(w, b) -> y
    x -> DynamicQuantizeLinear -> MatMulInteger(int8 w) -> Cast -> Mul(scales) -> Add(b) -> y

ONNX Runtime fuses the second line into one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from modelpress.spec.quantize import QuantizeInt8
from workers.engine.context import Context
from workers.engine.graph import Graph, edit
from workers.engine.passes.quantize import _affine, _refine
from workers.engine.passes.quantize._builder import Builder
from workers.engine.passes.quantize._refine import Deeds
from workers.engine.passes.quantize._rules import Rules
from workers.engine.passes.quantize._targets import Target
from workers.engine.passes.quantize._weights import Layer, Weights, describe

_INTEGER = frozenset({"Gemm", "MatMul"})


def quantize(
    graph: Graph,
    targets: Sequence[Target],
    step: QuantizeInt8,
    ctx: Context,
    *,
    limit: int,
    rules: Rules,
    deeds: Deeds,
) -> set[ir.Node]:
    """Gemm and MatMul multiply integers; the weights of convolutions are stored as int8 and computed with in float.

    Changes the graph. Answers the nodes of it that run on integers: none, new ones took their places.
    """
    builder = Builder(graph)
    per_channel = rules.per_channel if step.per_channel else frozenset()
    weights = Weights(builder, per_channel=per_channel)
    rewriter = _Rewriter(builder, weights)
    layers = [_encoded(rewriter.upright(target), weights, limit) for target in targets]
    layers = _refine.refine(graph, layers, step, ctx, deeds)
    for target, layer in zip(targets, layers, strict=True):
        told = [describe(layer)]
        if layer.target.kind in _INTEGER:
            rewriter.rewrite(layer)
        else:
            weights.replace(layer)
            told.append("stored so, computed with in float")
        done = list(dict.fromkeys([*deeds[target.weight], *deeds[layer.target.weight]]))
        ctx.touched(target.weight, "; ".join([*told, *done]))
    edit.remove_dead(graph)
    return set()


def _encoded(target: Target, weights: Weights, limit: int) -> Layer:
    return weights.encode(target, _limit(target, limit), None)


def _limit(target: Target, limit: int) -> int:
    """Sums in float do not saturate."""
    return limit if target.kind in _INTEGER else _affine.FULL_RANGE


class _Rewriter:
    def __init__(self, builder: Builder, weights: Weights) -> None:
        self._builder, self._weights = builder, weights
        self._inputs: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def rewrite(self, layer: Layer) -> None:
        """Replaces the node, whose weight is upright, by integer arithmetic."""
        target = layer.target
        stored, weight_scale, weight_zero = self._weights.store(target, layer.codes)
        node = target.node
        x, scale, zero = self._quantized(node)
        out = node.outputs[0]
        make, name = self._builder.node, out.name or ""
        int32 = ir.DataType.INT32
        product = make(
            "MatMulInteger", [x, stored, zero, weight_zero], f"{name}_int32", like=out, dtype=int32
        )
        cast = make(
            "Cast",
            product.outputs,
            f"{name}_cast",
            like=out,
            attributes={"to": int(ir.DataType.FLOAT)},
        )
        scales = make("Mul", [scale, weight_scale], f"{name}_scales")
        result = make("Mul", [cast.outputs[0], scales.outputs[0]], f"{name}_scaled", like=out)
        new = [product, cast, scales, result]
        if target.bias is not None:
            new.append(make("Add", [result.outputs[0], target.bias], f"{name}_biased", like=out))
        self._builder.insert_before(node, *new)
        self._builder.take_place(out, new[-1].outputs[0])

    def upright(self, target: Target) -> Target:
        """The target with its weight as [K, N], as MatMulInteger wants it."""
        if target.kind != "Gemm" or not target.node.attributes.get_int("transB", 0):
            return target
        graph = self._builder.graph
        turned = np.ascontiguousarray(graph.weight(target.weight).T)
        value = self._builder.constant(f"{target.weight}_t", turned)
        target.node.replace_input_with(1, value)
        target.node.attributes.pop("transB")
        return replace(target, weight=value.name or "", axis=1)

    def _quantized(self, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Codes, scale and zero point of the node's input; made once for all nodes that read it."""
        value = node.inputs[0]
        assert value is not None
        if value not in self._inputs:
            name = value.name
            kinds = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
            outputs = [
                ir.Value(name=self._builder.fresh(f"{name}_{suffix}"), type=ir.TensorType(kind))
                for suffix, kind in zip(("q", "q_scale", "q_zero"), kinds, strict=True)
            ]
            quantize = ir.node(
                "DynamicQuantizeLinear",
                [value],
                outputs=outputs,
                name=self._builder.fresh(f"{name}_quantize"),
            )
            self._builder.insert_where_made(value, quantize)
            self._inputs[value] = (outputs[0], outputs[1], outputs[2])
        return self._inputs[value]
