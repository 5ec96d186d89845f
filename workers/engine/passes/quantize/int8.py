"""quantize.int8: weights and activations in 8-bit integers (Jacob et al. 2017, arXiv 1712.05877).

    x -> Conv(w) -> BatchNormalization -> Relu -> y
    x -> Q -> DQ -> Conv(DQ(int8 w), DQ(int32 b)) -> Q -> DQ -> y

Activations are uint8 with a zero point, weights int8 and symmetric, one scale per output channel. BatchNormalization is folded first;
a Relu becomes the end of the range. Differs in: no training with simulated quantization, which is `quantize.qat`.
"""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Sequence, Set

import onnx_ir as ir

from modelpress.spec.quantize import QuantizeInt8
from workers.engine.context import Context
from workers.engine.graph import Graph, edit, match, shapes
from workers.engine.graph.ops import TABLE, key
from workers.engine.measure import environment
from workers.engine.passes import _constants, _lookahead, _nothing, _weights
from workers.engine.passes.quantize import (
    _affine,
    _dynamic,
    _equalize,
    _plan,
    _prepare,
    _rules,
    _smooth,
    _static,
    _targets,
)
from workers.engine.passes.quantize._refine import Deeds
from workers.engine.passes.quantize._targets import Target

_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})

_SATURATES = (
    "weights use 7 of their 8 bits: this CPU has no VNNI, so that sums of 8-bit products would saturate in int16 "
    "(set reduce_range to false for a target with VNNI)"
)
_SLOW_PRODUCTS = "products of two activations stay in float: on this CPU, without VNNI, their integer kernels are slower"
_EXACT = "weights use all 8 bits: this CPU adds 8-bit products exactly (set reduce_range to true for x86 targets without VNNI)"

_QUANTIZATION = frozenset(
    [
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "Cast",
        "Shape",
        "Size",
    ]
)
"""Operators that are part of the quantization itself, or read no values."""


def apply(graph: Graph, step: QuantizeInt8, ctx: Context) -> Graph:
    """Quantizes every layer that the recipe does not exclude.

    Raises:
        NothingChanged: no layer could be quantized.
        BadModel: an activation is not finite on calibration samples.
    """
    rules = _rules.OF[step.target]
    input_shapes = example_shapes(graph, ctx)
    targets, products = prepared(graph, input_shapes, step, ctx)
    limit = weight_limit(step, ctx)
    deeds: Deeds = defaultdict(list)
    balance(graph, targets, input_shapes, step, ctx, deeds)
    ctx.coverage.prepared = graph.clone()
    if step.mode == "static":
        integer = _static.quantize(
            graph, targets, products, step, ctx, limit=limit, rules=rules, deeds=deeds
        )
    else:
        integer = _dynamic.quantize(
            graph, targets, step, ctx, limit=limit, rules=rules, deeds=deeds
        )
    report_float(graph, integer, step, ctx)
    return graph


def balance(
    graph: Graph,
    targets: Sequence[Target],
    input_shapes: shapes.Shapes,
    step: QuantizeInt8,
    ctx: Context,
    deeds: Deeds,
) -> None:
    """Moves sizes between layers and activations, as the step asks; the float network computes the same."""
    if step.equalize:
        _equalize.equalize(graph, targets, shapes.infer(graph, input_shapes), ctx, deeds)
    if step.smooth is not None:
        assert ctx.train is not None, "the recipe was checked: smoothing has data"
        samples = ctx.train.take(step.samples, ctx.seed)
        _smooth.smooth(graph, targets, step.smooth, samples, ctx, deeds)


def survey(graph: Graph, ctx: Context) -> None:
    """Lists which layers would run on integers, and what stays in float. Raises as `apply`, or Undetermined."""
    step = QuantizeInt8()
    targets, products = prepared(graph, _lookahead.input_shapes(graph), step, ctx)
    integer = _static.foresee(graph, targets, products, ctx, _rules.OF[step.target])
    report_float(graph, integer, step, ctx)


def prepared(
    graph: Graph, input_shapes: shapes.Shapes, step: QuantizeInt8, ctx: Context
) -> tuple[list[Target], list[ir.Node]]:
    """Brings the graph into the form that is quantized; the layers and the products of two activations that will be.

    Raises:
        NothingChanged: there are none.
    """
    _fold(graph, input_shapes, ctx)
    other_weights = match.not_layers(graph)
    _prepare.scale_gemms(graph)
    if step.mode == "static":
        ranks = _ranks(graph, input_shapes)
        _prepare.join_biases(graph, ranks)
        _prepare.pool_means(graph, ranks)
        _prepare.pull_cuts(graph)
    targets = _targets.find(graph, step, ctx)
    for name, reason in other_weights.items():
        ctx.skipped(name, reason)
    products = _products(graph, step, ctx)
    if not targets and not products:
        raise _nothing.found("there is no layer to quantize", step, ctx)
    return targets, products


def _products(graph: Graph, step: QuantizeInt8, ctx: Context) -> list[ir.Node]:
    """Products of two activations, where integer kernels beat float: before VNNI they take 1.0 to 1.3 times as long."""
    found = _targets.products(graph.nodes, step) if step.mode == "static" else []
    if found and _rules.OF[step.target].by_cpu and _saturates():
        ctx.note(_SLOW_PRODUCTS)
        return []
    return found


def _fold(graph: Graph, input_shapes: shapes.Shapes, ctx: Context) -> None:
    _prepare.drop_identities(graph)
    _weights.turn(graph, copy_shared=True)
    _constants.fold(graph, input_shapes)
    folded = edit.fold_batch_norm(graph)
    if folded:
        ctx.note(f"{len(folded)} BatchNormalization nodes were folded into the layers before them")


def example_shapes(graph: Graph, ctx: Context) -> shapes.Shapes:
    """Shapes of the inputs for one sample, from the data where the model leaves them open."""
    sample = ctx.train.batch([0]) if ctx.train is not None else {}
    given = {name: array.shape for name, array in sample.items()}
    return shapes.example_shapes(graph, given=given)


def _ranks(graph: Graph, input_shapes: shapes.Shapes) -> dict[str, int]:
    """Number of dimensions of every value."""
    return {name: len(shape) for name, shape in shapes.infer(graph, input_shapes).items()}


def weight_limit(step: QuantizeInt8, ctx: Context) -> int:
    """Largest magnitude of a weight's code, by the recipe or by this CPU."""
    reduce = step.reduce_range
    if reduce is None:
        reduce = _saturates()
        ctx.note(_SATURATES if reduce else _EXACT)
    elif not reduce and _saturates():
        ctx.note("reduce_range is false, but this CPU has no VNNI: sums may saturate and be wrong")
    return _affine.REDUCED_RANGE if reduce else _affine.FULL_RANGE


def _saturates() -> bool:
    """Whether this CPU adds products of 8-bit numbers in int16, as x86 does before VNNI."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and not _VNNI & set(environment.cpu_flags())


def report_float(graph: Graph, integer: Set[ir.Node], step: QuantizeInt8, ctx: Context) -> None:
    """Names what still computes in float, as counts of operators."""
    left = Counter(node.op_type for node in graph.nodes if _is_float(node, integer))
    for op_type, count in sorted(left.items()):
        ctx.skipped(f"{op_type} ({count} nodes)" if count > 1 else op_type, _reason(op_type, step))


def _is_float(node: ir.Node, integer: Set[ir.Node]) -> bool:
    operator = TABLE[key(node.domain, node.op_type)]
    if node in integer or operator.moves_data or node.op_type in _QUANTIZATION:
        return False
    dtypes = {v.dtype for v in node.inputs if v is not None and v.const_value is None}
    return bool(dtypes & {ir.DataType.FLOAT, None})


def _reason(op_type: str, step: QuantizeInt8) -> str:
    if step.mode == "dynamic":
        return "stays in float: dynamic mode quantizes matrix products only"
    rules = _rules.OF[step.target]
    if op_type in rules.kernels:
        return "stays in float: excluded, without a constant weight, or skipped above"
    if op_type in rules.joiners or op_type in _plan.CUTS:
        return "stays in float: what it reads or what reads it is float too"
    return "stays in float: ONNX Runtime has no 8-bit kernel for it, or its accuracy would suffer"
