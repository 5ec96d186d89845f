"""quantize.bits: weights alone in 2 to 8 bits, with a scale for each group of inputs of an output; everything computes in float.

    x -> Gemm(w) -> y
    codes -> Cast -> Sub(zero) -> Mul(scales) -> Gemm(x, .) -> y        unpack 'load'
    codes -> DequantizeLinear(scales) -> Conv(x, .) -> y                unpack 'run'
    x -> MatMulNBits(codes, scales) -> y                                unpack 'run', matrix products

BatchNormalization is folded first. Codes are found by rounding to nearest, GPTQ (arXiv 2210.17323) or AWQ (arXiv 2306.00978).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from modelpress.spec.quantize import QuantizeBits
from workers.engine.context import Context
from workers.engine.errors import BadModel, NothingChanged
from workers.engine.graph import Graph, edit, match, shapes
from workers.engine.passes import _constants, _lookahead, _weights
from workers.engine.passes.quantize import _matrix, _mixed, _moments, _nbits, _packed, _prepare
from workers.engine.passes.quantize import _rounding as rounding
from workers.engine.passes.quantize._matrix import Matrix
from workers.engine.passes.quantize._rounding import Rounded

Layers = Mapping[str, list[match.Layer]]
"""By weight, those that multiply by it."""

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
    found = round_all(graph, layers, matrices, widths, step, ctx)
    if step.mixed is None:
        chosen = dict.fromkeys(layers, step.bits)
    else:
        chosen = _mixed.choose(graph, _packings(found), step, ctx)
    at = {name: found[name][width] for name, width in chosen.items()}
    kept = {name: of for name, of in at.items() if _is_smaller(graph, name, of, ctx)}
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


def round_all(
    graph: Graph,
    layers: Layers,
    matrices: Mapping[str, Matrix],
    widths: Sequence[int],
    step: QuantizeBits,
    ctx: Context,
) -> dict[str, dict[int, Rounded]]:
    """Every weight at every width; layers see the inputs of the float network, or with `sequential` those of the layers rounded before."""
    found: dict[str, dict[int, Rounded]] = {}
    running = graph.clone() if step.sequential else graph
    for number, names in enumerate(_turns(layers, matrices, step), start=1):
        measured = _measured(running, names, matrices, step, ctx)
        for name in names:
            found[name] = {
                width: rounding.rounded(
                    graph.weight(name), matrices[name], width, measured.get(name), step
                )
                for width in widths
            }
            if step.sequential:
                running.set_weight(name, found[name][widths[0]].packed.decoded())
        ctx.report(len(found) / len(layers), f"rounding weights, pass {number}")
    return found


def _packings(found: Mapping[str, Mapping[int, Rounded]]) -> _mixed.Packings:
    return {name: {w: r.packed for w, r in of.items()} for name, of in found.items()}


def _turns(layers: Layers, matrices: Mapping[str, Matrix], step: QuantizeBits) -> list[list[str]]:
    """Weights that are rounded after the same pass over the samples."""
    if step.method == "rtn":
        return [list(layers)]
    if step.sequential:
        return [[name] for name in layers]
    return list(_moments.passes(list(layers), matrices))


def _measured(
    graph: Graph,
    names: Sequence[str],
    matrices: Mapping[str, Matrix],
    step: QuantizeBits,
    ctx: Context,
) -> dict[str, _moments.Moments]:
    """What the layers of these weights see, for those that it can be measured for."""
    if step.method == "rtn":
        return {}
    wanted = [
        layer
        for layer in match.layers(graph)
        if layer.weight in names
        and _matrix.has_inputs(layer)
        and _like(layer, matrices[layer.weight])
    ]
    narrow = [lay for lay in wanted if matrices[lay.weight].columns <= _moments.MAX_COLUMNS]
    for name in names:
        if name not in {layer.weight for layer in narrow}:
            ctx.note(
                f"'{name}' was rounded to nearest: {step.method} needs the second moments of its inputs, which are not taken for "
                f"ConvTranspose and for more than {_moments.MAX_COLUMNS:,} inputs"
            )
    return _moments.gather(graph, narrow, matrices, step.samples, ctx) if narrow else {}


def _like(layer: match.Layer, matrix: Matrix) -> bool:
    """Whether a layer reads its weight as the first one that uses it does."""
    groups = layer.node.attributes.get_int("group", 1) if layer.kind == "Conv" else 1
    return layer.out_axis == matrix.axis and groups == matrix.groups


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
        reasons = "; ".join(f"{s.layer}: {s.reason}" for s in ctx.coverage.skipped[:10])
        raise NothingChanged(
            f"quantize.bits found no layer to quantize ({reasons or 'the model has no Conv, Gemm or MatMul with a weight'})",
            hint="shorten exclude" if step.exclude else "leave this step out for this model",
        )
    return chosen


def _chosen(graph: Graph, step: QuantizeBits, ctx: Context) -> dict[str, list[match.Layer]]:
    found: dict[str, list[match.Layer]] = {}
    excluded: dict[str, None] = {}
    for layer in match.layers(graph):
        found.setdefault(layer.weight, []).append(layer)
        if step.excludes(layer.weight, layer.name):
            excluded[layer.weight] = None
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


def _is_smaller(graph: Graph, name: str, rounded: Rounded, ctx: Context) -> bool:
    before, after = graph.weight(name).nbytes, sum(rounded.packed.bytes_of.values())
    if after < before:
        return True
    ctx.skipped(name, f"codes and scales take {after:,} bytes, the weights {before:,}")
    return False


def _store(graph: Graph, layers: list[match.Layer], rounded: Rounded, step: QuantizeBits) -> str:
    """Puts the packed weight in the place of the float one. Answers what was done."""
    name, packed = layers[0].weight, rounded.packed
    change = _change(graph.weight(name).nbytes, rounded)
    value = graph.initializers[name]
    nodes = {user for user, _ in value.uses()}
    taken = nodes == {layer.node for layer in layers} and not any(
        _nbits.why_not(layer, packed) or not _like(layer, packed.matrix) for layer in layers
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
