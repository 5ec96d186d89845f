"""Rounds the weights of all layers, in turns: layers see the inputs of the float network, or those that the layers rounded before them give."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from modelpress.spec.quantize import QuantizeBits
from workers.engine.context import Context
from workers.engine.graph import Graph, match
from workers.engine.passes import _matrix, _moments
from workers.engine.passes._matrix import Matrix
from workers.engine.passes.quantize import _bias, _targets
from workers.engine.passes.quantize import _rounding as rounding
from workers.engine.passes.quantize._builder import Builder
from workers.engine.passes.quantize._rounding import Rounded

Layers = Mapping[str, list[match.Layer]]
"""By weight, those that multiply by it."""


def round_all(
    graph: Graph,
    layers: Layers,
    matrices: Mapping[str, Matrix],
    widths: Sequence[int],
    step: QuantizeBits,
    ctx: Context,
) -> dict[str, dict[int, Rounded]]:
    """Every weight at every width. The graph stays as it is."""
    found: dict[str, dict[int, Rounded]] = {}
    shifted = _with_place(layers, ctx) if step.bias_correction else set()
    running = graph.clone() if step.sequential else graph
    for number, names in enumerate(_turns(layers, matrices, step), start=1):
        beside = graph if step.sequential else None
        measured = _measured(running, names, matrices, step, ctx, beside)
        for name in names:
            weight, seen = graph.weight(name), measured.get(name)
            found[name] = {
                width: rounding.rounded(
                    weight, matrices[name], width, seen, step, shifts=name in shifted
                )
                for width in widths
            }
            if step.sequential:
                _put(running, name, found[name][widths[0]])
        ctx.report(len(found) / len(layers), f"rounding weights, pass {number}")
    return found


def is_smaller(graph: Graph, name: str, rounded: Rounded) -> bool:
    """Whether codes and scales take fewer bytes than the weight."""
    return sum(rounded.packed.bytes_of.values()) < graph.weight(name).nbytes


def is_like(layer: match.Layer, matrix: Matrix) -> bool:
    """Whether a layer reads its weight as the first one that uses it does."""
    groups = layer.node.attributes.get_int("group", 1) if layer.kind == "Conv" else 1
    return layer.out_axis == matrix.axis and groups == matrix.groups


def shift_bias(graph: Graph, layer: match.Layer, rounded: Rounded) -> None:
    """Gives the layer the bias that its rounded weight needs."""
    if rounded.shift is not None:
        _bias.add(Builder(graph), _targets.of(layer), rounded.shift)


def _with_place(layers: Layers, ctx: Context) -> set[str]:
    """Weights of layers whose bias can be changed; the others are noted."""
    found = {
        name
        for name, users in layers.items()
        if len(users) == 1 and _bias.has_place(_targets.of(users[0]))
    }
    if without := [name for name in layers if name not in found]:
        ctx.note(
            f"bias_correction: {len(without)} weights have no bias of their own: {', '.join(without[:5])}"
        )
    return found


def _put(running: Graph, name: str, rounded: Rounded) -> None:
    """Lets the layers after this one see what it gives when rounded, where it will be."""
    if is_smaller(running, name, rounded):
        for layer in match.layers(running):
            if layer.weight == name:
                shift_bias(running, layer, rounded)
        running.set_weight(name, rounded.packed.decoded())


def _turns(layers: Layers, matrices: Mapping[str, Matrix], step: QuantizeBits) -> list[list[str]]:
    """Weights that are rounded after the same pass over the samples."""
    if not step.looks_at_inputs:
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
    beside: Graph | None,
) -> dict[str, _moments.Moments]:
    """What the layers of these weights see, for those that it can be measured for."""
    if not step.looks_at_inputs:
        return {}
    wanted = [
        layer
        for layer in match.layers(graph)
        if layer.weight in names
        and _matrix.has_inputs(layer)
        and is_like(layer, matrices[layer.weight])
    ]
    narrow = [lay for lay in wanted if matrices[lay.weight].columns <= _moments.MAX_COLUMNS]
    _note_others(set(names) - {layer.weight for layer in narrow}, step, ctx)
    if not narrow:
        return {}
    return _moments.gather(graph, narrow, matrices, step.samples, ctx, beside=beside)


def _note_others(names: Collection[str], step: QuantizeBits, ctx: Context) -> None:
    for name in sorted(names):
        ctx.note(
            f"'{name}' was rounded to nearest: {step.method} needs the second moments of its inputs, which are not taken for "
            f"ConvTranspose of several groups and for more than {_moments.MAX_COLUMNS:,} inputs"
        )
