"""Static int8: activation ranges come from calibration data, so that whole chains of nodes run on integers.

x -> Conv(w) -> Relu -> y
x -> Q -> DQ -> Conv(DQ(int8 w), DQ(int32 b)) -> Q -> DQ -> y
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from modelpress.spec.quantize import QuantizeInt8
from workers.engine.context import Context
from workers.engine.graph import Graph, edit
from workers.engine.passes.quantize import (
    _affine,
    _layerwise,
    _plan,
    _ranges,
    _refine,
    _sweep,
    _weights,
)
from workers.engine.passes.quantize._builder import Builder
from workers.engine.passes.quantize._plan import Plan
from workers.engine.passes.quantize._refine import Deeds
from workers.engine.passes.quantize._rules import Rules
from workers.engine.passes.quantize._targets import Target
from workers.engine.passes.quantize._weights import Layer, Weights

Codes = Mapping[ir.Value, _affine.Activation]


def quantize(
    graph: Graph,
    targets: Sequence[Target],
    products: Sequence[ir.Node],
    step: QuantizeInt8,
    ctx: Context,
    *,
    limit: int,
    rules: Rules,
    deeds: Deeds,
) -> set[ir.Node]:
    """Puts QuantizeLinear and DequantizeLinear around everything integer kernels can do. Changes the graph.

    Answers the nodes that run on integers.

    `products`: MatMul nodes of two activations. `limit`: largest magnitude of a weight's code.
    """
    plan = _plan.make(graph.nodes, kernels(targets, products, rules), rules)
    codes = calibrate(graph, plan, step, ctx, symmetric=rules.symmetric)
    per_channel = rules.per_channel if step.per_channel else frozenset()
    weights = Weights(Builder(graph), per_channel=per_channel, integer_biases=rules.integer_biases)
    layers = [
        weights.encode(t, limit, codes[t.input] if is_kernel(t, rules) else None) for t in targets
    ]
    layers = _refine.refine(graph, layers, step, ctx, deeds)
    store(layers, products, weights, ctx, deeds)
    code_activations(graph, plan, codes)
    return plan.integer


def store(
    layers: Sequence[Layer],
    products: Sequence[ir.Node],
    weights: Weights,
    ctx: Context,
    deeds: Deeds,
) -> None:
    """Gives every layer the codes that were chosen for it, and reports it."""
    for layer in layers:
        weights.replace(layer)
        told = [_weights.describe(layer), *deeds[layer.target.weight]]
        ctx.touched(layer.target.weight, "; ".join(told))
    for node in products:
        ctx.touched(node.name or "MatMul", "both activations as codes")


def foresee(
    graph: Graph,
    targets: Sequence[Target],
    products: Sequence[ir.Node],
    ctx: Context,
    rules: Rules,
) -> set[ir.Node]:
    """Reports what `quantize` would do. Answers the nodes that would run on integers, or disappear into those."""
    for target in targets:
        kernel = "int8 weights, multiplied as integers"
        is_integer = is_kernel(target, rules)
        ctx.touched(target.weight, kernel if is_integer else "int8 weights, float arithmetic")
    for node in products:
        ctx.touched(node.name or "MatMul", "both activations as codes")
    plan = _plan.make(graph.nodes, kernels(targets, products, rules), rules)
    return plan.integer | plan.cut


def kernels(targets: Sequence[Target], products: Sequence[ir.Node], rules: Rules) -> list[ir.Node]:
    """The nodes that will multiply integers."""
    return [*(t.node for t in targets if is_kernel(t, rules)), *products]


def is_kernel(target: Target, rules: Rules) -> bool:
    """Whether a layer multiplies integers; channels of a transposed convolution of several groups share scales of weights."""
    grouped = target.kind == "ConvTranspose" and _layerwise.groups(target) > 1
    return target.kind in rules.kernels and not grouped


def calibrate(
    graph: Graph, plan: Plan, step: QuantizeInt8, ctx: Context, *, symmetric: bool
) -> dict[ir.Value, _affine.Activation]:
    """Codes for every value of the plan, from the ranges that calibration samples show.

    Raises:
        BadModel: a value is not finite.
    """
    assert ctx.train is not None, "the recipe was checked: static calibration has data"
    ranges = {source: _ranges.new(step, symmetric=symmetric) for source in plan.sources.values()}
    wanted = [(source.name or "", found) for source, found in ranges.items()]
    _sweep.run(graph, wanted, ctx.train.take(step.samples, ctx.seed), ctx)
    codes = {
        source: _affine.activation(*found.bounds(), symmetric=symmetric)
        for source, found in ranges.items()
    }
    return {value: codes[source] for value, source in plan.sources.items()}


def code_activations(graph: Graph, plan: Plan, codes: Codes) -> None:
    """Puts QuantizeLinear and DequantizeLinear behind every value of the plan."""
    inserter = Inserter(Builder(graph), plan, codes)
    for value in plan.sources:
        inserter.insert(value)
    edit.remove_dead(graph)


class Inserter:
    """Puts value -> QuantizeLinear -> DequantizeLinear where the plan wants it."""

    def __init__(self, builder: Builder, plan: Plan, codes: Codes) -> None:
        self._builder, self._plan, self._codes = builder, plan, codes
        self._constants: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def insert(self, value: ir.Value) -> None:
        """For the integer nodes that read the value; for all its readers where an integer kernel makes it."""
        made_by = value.producer()
        from_kernel = made_by in self._plan.integer or made_by in self._plan.cut
        wanted = value
        if made_by in self._plan.cut:
            value = self._drop_cut(value)
        readers = [(n, i) for n, i in value.uses() if from_kernel or n in self._plan.integer]
        new = self.nodes(wanted, value)
        self._builder.insert_where_made(value, *new)
        back = new[-1].outputs[0]
        for reader, index in readers:
            reader.replace_input_with(index, back)
        if from_kernel:
            self._take_over_outputs(value, back)

    def nodes(self, wanted: ir.Value, value: ir.Value) -> list[ir.Node]:
        """The nodes that give `value` the codes that were planned for `wanted`; the last one's output is read instead."""
        scale, zero = self._scale_and_zero(wanted)
        node, name = self._builder.node, value.name or ""
        dtype = ir.DataType.from_numpy(self._codes[wanted].zero.dtype)
        stored = node("QuantizeLinear", [value, scale, zero], f"{name}_q", like=value, dtype=dtype)
        back = node("DequantizeLinear", [stored.outputs[0], scale, zero], f"{name}_dq", like=value)
        return [stored, back]

    def _scale_and_zero(self, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        source = self._plan.sources[value]
        if source not in self._constants:
            codes, constant = self._codes[value], self._builder.constant
            self._constants[source] = (
                constant(f"{source.name}_scale", np.array(codes.scale)),
                constant(f"{source.name}_zero", np.array(codes.zero)),
            )
        return self._constants[source]

    def _drop_cut(self, value: ir.Value) -> ir.Value:
        """Removes the Relu or Clip that makes `value`; what it read takes its place and name."""
        node = value.producer()
        assert node is not None
        before = node.inputs[0]
        assert before is not None
        value.replace_all_uses_with(before, replace_graph_outputs=True)
        self._builder.graph.model.graph.remove(node, safe=True)
        before.name, value.name = value.name, None
        return before

    def _take_over_outputs(self, value: ir.Value, back: ir.Value) -> None:
        outputs = self._builder.graph.model.graph.outputs
        for index, output in enumerate(outputs):
            if output is value:
                outputs[index] = back
                name = value.name
                value.name, back.name = self._builder.fresh(f"{name}_float"), name
