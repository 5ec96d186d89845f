"""quantize.bits: weights alone in 2 to 8 bits, with a scale for each group of inputs of an output; everything computes in float.

    x -> Gemm(w) -> y
    codes -> Cast -> Sub(zero) -> Mul(scales) -> Gemm(x, .) -> y        unpack 'load'
    codes -> DequantizeLinear(scales) -> Conv(x, .) -> y                unpack 'run'
    x -> MatMulNBits(codes, scales) -> y                                unpack 'run', matrix products

BatchNormalization is folded first. Codes are found by rounding to nearest, GPTQ (arXiv 2210.17323) or AWQ (arXiv 2306.00978); biases can make
good what rounding does to the mean of an output (arXiv 1906.04721, 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from modelpress.spec.quantize import QuantizeBits
from workers.engine.context import Context
from workers.engine.errors import BadModel, NothingChanged
from workers.engine.graph import Graph, edit, match, shapes
from workers.engine.passes import _constants, _lookahead, _nothing, _weights
from workers.engine.passes._matrix import Matrix
from workers.engine.passes.quantize import _mixed, _nbits, _packed, _prepare, _rounds
from workers.engine.passes.quantize._rounding import Rounded

_AT_LOAD = "ONNX Runtime turns the codes into floats once, when it opens the file: the file is smaller, a run is no faster and needs no less memory"
_AT_RUN = "weights that no MatMulNBits takes are turned into floats at each run: small in memory, but slower"
_IN_INT8 = "MatMulNBits rounds its inputs to 8 bits at each run, block by block: outputs differ by some tenths of a percent"
_WIDER = "codes of {bits} bits are stored in {width}: ONNX has no narrower type; a packed container (code.entropy) takes what is left over"


def apply(graph: Graph, step: QuantizeBits, ctx: Context) -> Graph:
    """Stores the weights of every layer that the recipe does not exclude in few bits.

    Raises:
        NothingChanged: there is no layer whose weights would take fewer bytes.
        BadModel: a weight, or an input of a layer on training samples, is not finite.
    """
    layers = _prepared(graph, _shapes(graph, ctx), step, ctx)
    ctx.coverage.prepared = graph.clone()
    matrices = {name: Matrix.of(graph, users[0]) for name, users in layers.items()}
    widths = (step.bits,) if step.mixed is None else step.mixed.choices
    found = _rounds.round_all(graph, layers, matrices, widths, step, ctx)
    if step.mixed is None:
        chosen = dict.fromkeys(layers, step.bits)
    else:
        chosen = _mixed.choose(graph, _packings(found), step, ctx)
    at = {name: found[name][width] for name, width in chosen.items()}
    kept = {name: of for name, of in at.items() if _saves(graph, name, of, ctx)}
    if not kept:
        raise NothingChanged(
            "quantize.bits found no layer whose weights take fewer bytes in few bits",
            hint="ask for fewer bits or larger groups, or leave this step out for this model",
        )
    for name, rounded in kept.items():
        ctx.touched(name, _store(graph, layers[name], rounded, step))
    _note(kept, step, ctx)
    edit.remove_dead(graph)
    return graph


def survey(graph: Graph, ctx: Context) -> None:
    """Lists what could be stored in few bits. Raises as `apply`, or Undetermined."""
    step = QuantizeBits()
    for name in _prepared(graph, _lookahead.input_shapes(graph), step, ctx):
        ctx.touched(name, "its weights can be stored in 2 to 8 bits")


def _packings(found: Mapping[str, Mapping[int, Rounded]]) -> _mixed.Packings:
    return {name: {w: r.packed for w, r in of.items()} for name, of in found.items()}


def _shapes(graph: Graph, ctx: Context) -> shapes.Shapes:
    sample = ctx.train.batch([0]) if ctx.train is not None else {}
    given = {name: array.shape for name, array in sample.items()}
    return shapes.example_shapes(graph, given=given)


def _prepared(
    graph: Graph, input_shapes: shapes.Shapes, step: QuantizeBits, ctx: Context
) -> dict[str, list[match.Layer]]:
    """Brings the graph into the form that is quantized; answers the layers of each weight that will be.

    Raises:
        NothingChanged: there are none.
        BadModel: a weight is not finite.
    """
    _prepare.drop_identities(graph)
    _weights.turn(graph, copy_shared=True)
    _constants.fold(graph, input_shapes)
    folded = edit.fold_batch_norm(graph)
    if folded:
        ctx.note(f"{len(folded)} BatchNormalization nodes were folded into the layers before them")
    others = match.not_layers(graph)
    _prepare.scale_gemms(graph)
    chosen = _chosen(graph, step, ctx)
    for name, reason in others.items():
        ctx.skipped(name, reason)
    if not chosen:
        raise _nothing.found("quantize.bits found no layer to quantize", step, ctx)
    return chosen


def _chosen(graph: Graph, step: QuantizeBits, ctx: Context) -> dict[str, list[match.Layer]]:
    found = match.by_weight(graph)
    excluded = [
        name for name, users in found.items() if step.excludes(name, *(u.name for u in users))
    ]
    for name in excluded:
        ctx.skipped(name, "excluded by the recipe")
        del found[name]
    return {name: users for name, users in found.items() if _is_usable(graph, name, ctx)}


def _is_usable(graph: Graph, name: str, ctx: Context) -> bool:
    weight = graph.weight(name)
    if weight.dtype != np.float32:
        ctx.skipped(name, f"its weight is {weight.dtype}, only float32 is quantized")
        return False
    if not np.isfinite(weight).all():
        raise BadModel(
            f"weight '{name}' has values that are not finite",
            layer=name,
            hint="train the model anew, or exclude the layer",
        )
    return True


def _saves(graph: Graph, name: str, rounded: Rounded, ctx: Context) -> bool:
    if _rounds.is_smaller(graph, name, rounded):
        return True
    before, after = graph.weight(name).nbytes, sum(rounded.packed.bytes_of.values())
    ctx.skipped(name, f"codes and scales take {after:,} bytes, the weights {before:,}")
    return False


def _store(graph: Graph, layers: list[match.Layer], rounded: Rounded, step: QuantizeBits) -> str:
    """Puts the packed weight in the place of the float one. Answers what was done."""
    name, packed = layers[0].weight, rounded.packed
    change = _change(graph.weight(name).nbytes, rounded)
    _rounds.shift_bias(graph, layers[0], rounded)
    value = graph.initializers[name]
    nodes = {user for user, _ in value.uses()}
    taken = nodes == {layer.node for layer in layers} and not any(
        _nbits.why_not(layer, packed) or not _rounds.is_like(layer, packed.matrix)
        for layer in layers
    )
    if step.unpack == "run" and taken:
        level = _nbits.IN_INT8 if step.activations == "int8" else _nbits.IN_FLOAT
        _nbits.replace(graph, layers, packed, level)
        return f"{change}; MatMulNBits"
    if step.unpack == "run":
        edit.replace_uses(value, _packed.dequantize_form(graph, name, packed))
        return f"{change}; DequantizeLinear"
    edit.replace_uses(value, _packed.load_form(graph, name, packed))
    return change


def _change(before: int, rounded: Rounded) -> str:
    packed, sizes = rounded.packed, rounded.packed.bytes_of
    scales = "output" if packed.per_channel else f"{packed.group} inputs"
    total = sum(sizes.values())
    parts = ", ".join(f"{count:,} {what}" for what, count in sizes.items() if count)
    of = "its outputs" if rounded.of_outputs else "the weights"
    how = f", {rounded.how}" if rounded.how else ""
    if rounded.shift is not None:
        how += f", its bias shifted by {np.abs(rounded.shift).max():.3g} at most"
    return (
        f"{packed.codes.size:,} weights in {packed.bits} bits, a scale for each {scales}{how}; {before:,} -> {total:,} bytes ({parts}), "
        f"x{before / total:.2f}; relative error of {of} {rounded.error:.2%}"
    )


def _note(kept: Mapping[str, Rounded], step: QuantizeBits, ctx: Context) -> None:
    ctx.note(_AT_LOAD if step.unpack == "load" else _AT_RUN)
    if step.activations == "int8":
        ctx.note(_IN_INT8)
    for packed in (rounded.packed for rounded in kept.values()):
        if packed.width != packed.bits:
            ctx.note(_WIDER.format(bits=packed.bits, width=packed.width))
    weights = sum(rounded.packed.codes.size for rounded in kept.values())
    total = sum(sum(rounded.packed.bytes_of.values()) for rounded in kept.values())
    ctx.note(
        f"{weights:,} weights take {8 * total / weights:.2f} bits each in the file, scales and zero points counted: x{32 * weights / (8 * total):.2f} "
        "smaller than float32"
    )
