"""Static int8: activation ranges come from calibration data, so that whole chains of nodes run on integers.

x -> Conv(w) -> Relu -> y
x -> Q -> DQ -> Conv(DQ(int8 w), DQ(int32 b)) -> Q -> DQ -> y
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from modelpress.spec.quantize import QuantizeInt8
from workers.engine.context import Context
from workers.engine.data import Dataset
from workers.engine.errors import BadModel
from workers.engine.graph import Graph, edit, execute, shapes
from workers.engine.passes.quantize import _affine, _plan, _ranges
from workers.engine.passes.quantize._builder import Builder
from workers.engine.passes.quantize._plan import Plan
from workers.engine.passes.quantize._targets import Target
from workers.engine.passes.quantize._weights import Weights

_BATCH = 32
_BATCH_BYTES = 256 << 20

Codes = dict[ir.Value, _affine.Activation]


def quantize(
    graph: Graph,
    targets: Sequence[Target],
    products: Sequence[ir.Node],
    step: QuantizeInt8,
    ctx: Context,
    *,
    limit: int,
) -> set[ir.Node]:
    """Puts QuantizeLinear and DequantizeLinear around everything integer kernels can do. Changes the graph.

    Answers the nodes that run on integers.

    `products`: MatMul nodes of two activations. `limit`: largest magnitude of a weight's code.
    """
    plan = _plan.make(graph.nodes, _kernels(targets, products))
    codes = _calibrate(graph, plan, step, ctx)
    builder = Builder(graph)
    weights = Weights(builder, per_channel=step.per_channel)
    for target in targets:
        scale = None
        if target.has_integer_kernel:
            scale = codes[_first(target.node)].scale
        ctx.touched(target.weight, weights.replace(target, limit, scale))
    for node in products:
        ctx.touched(node.name or "MatMul", "both activations in uint8")
    inserter = _Inserter(builder, plan, codes)
    for value in plan.sources:
        inserter.insert(value)
    edit.remove_dead(graph)
    return plan.integer


def foresee(
    graph: Graph, targets: Sequence[Target], products: Sequence[ir.Node], ctx: Context
) -> set[ir.Node]:
    """Reports what `quantize` would do. Answers the nodes that would run on integers, or disappear into those."""
    for target in targets:
        kernel = "int8 weights, multiplied as integers"
        ctx.touched(
            target.weight, kernel if target.has_integer_kernel else "int8 weights, float arithmetic"
        )
    for node in products:
        ctx.touched(node.name or "MatMul", "both activations in uint8")
    plan = _plan.make(graph.nodes, _kernels(targets, products))
    return plan.integer | plan.cut


def _kernels(targets: Sequence[Target], products: Sequence[ir.Node]) -> list[ir.Node]:
    return [*(t.node for t in targets if t.has_integer_kernel), *products]


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _calibrate(graph: Graph, plan: Plan, step: QuantizeInt8, ctx: Context) -> Codes:
    sources = list(dict.fromkeys(plan.sources.values()))
    assert ctx.train is not None, "the recipe was checked: static calibration has data"
    ranges = _observe(graph, sources, ctx.train.take(step.samples, ctx.seed), step, ctx)
    codes = {v: _affine.activation(*r.bounds()) for v, r in zip(sources, ranges, strict=True)}
    return {value: codes[source] for value, source in plan.sources.items()}


def _observe(
    graph: Graph, values: Sequence[ir.Value], samples: Dataset, step: QuantizeInt8, ctx: Context
) -> list[_ranges.Range]:
    """Runs the calibration samples through the graph; one range for each value.

    Raises:
        BadModel: a value is not finite.
    """
    names = [value.name or "" for value in values]
    ranges = [_new_range(step) for _ in names]
    module = execute.as_module(graph).to(ctx.device).eval()
    fixed = _fixed_batch(graph)
    size = fixed or _free_batch(graph, names, samples)
    for indices in _batches(samples.samples, size, full=fixed is not None):
        batch = samples.batch(indices)
        inputs = [torch.from_numpy(batch[v.name or ""]).to(ctx.device) for v in graph.inputs]
        with torch.no_grad():
            seen = module.values(inputs, names)
        for name, gathered in zip(names, ranges, strict=True):
            gathered.add(_finite(name, seen[name].float().cpu().numpy()))
        ctx.report(
            (int(indices[-1]) + 1) / samples.samples, f"calibrating on {samples.samples} samples"
        )
    return ranges


def _new_range(step: QuantizeInt8) -> _ranges.Range:
    if step.calibration == "percentile":
        return _ranges.Percentile(step.percentile)
    return _ranges.MinMax()


def _fixed_batch(graph: Graph) -> int | None:
    """The number of samples that the inputs declare; None where it is free."""
    sizes = [value.shape[0] for value in graph.inputs if value.shape]
    return next((size for size in sizes if isinstance(size, int)), None)


def _free_batch(graph: Graph, names: Sequence[str], samples: Dataset) -> int:
    """As many samples as keep the values that are looked at, all at one time, within `_BATCH_BYTES`."""
    given = {name: array.shape for name, array in samples.batch([0]).items()}
    inferred = shapes.infer(graph, shapes.example_shapes(graph, given=given))
    sample_bytes = sum(4 * math.prod(inferred[name]) for name in names if name in inferred)
    return max(1, min(_BATCH, _BATCH_BYTES // max(sample_bytes, 1)))


def _batches(samples: int, size: int, *, full: bool) -> Iterator[NDArray[np.int64]]:
    """Indices of all samples in batches; a last one that must be full repeats the last sample."""
    for start in range(0, samples, size):
        indices = np.arange(start, start + size)
        yield indices.clip(max=samples - 1) if full else indices[indices < samples]


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise BadModel(
            f"value '{name}' is not finite on calibration samples: no range can be taken",
            layer=name,
            hint="look for NaN or infinity in the data, or exclude the layers before it",
        )
    return values


class _Inserter:
    """Puts value -> QuantizeLinear -> DequantizeLinear where the plan wants it."""

    def __init__(self, builder: Builder, plan: Plan, codes: Codes) -> None:
        self._builder, self._plan, self._codes = builder, plan, codes
        self._constants: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def insert(self, value: ir.Value) -> None:
        """For the integer nodes that read the value; for all its readers where an integer kernel makes it."""
        scale, zero = self._scale_and_zero(value)
        made_by = value.producer()
        from_kernel = made_by in self._plan.integer or made_by in self._plan.cut
        if made_by in self._plan.cut:
            value = self._drop_cut(value)
        readers = [(n, i) for n, i in value.uses() if from_kernel or n in self._plan.integer]
        node, name = self._builder.node, value.name or ""
        stored = node(
            "QuantizeLinear", [value, scale, zero], f"{name}_q", like=value, dtype=ir.DataType.UINT8
        )
        back = node("DequantizeLinear", [stored.outputs[0], scale, zero], f"{name}_dq", like=value)
        self._builder.insert_where_made(value, stored, back)
        for reader, index in readers:
            reader.replace_input_with(index, back.outputs[0])
        if from_kernel:
            self._take_over_outputs(value, back.outputs[0])

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
