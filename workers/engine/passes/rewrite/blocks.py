"""rewrite.blocks: convolutions as the blocks of small architectures.

    Conv [O, I, k, k] -> BatchNormalization -> Relu    becomes    block -> Relu
    Conv [O, I, k, k] -> Relu                          becomes    block -> Relu

Shapes stay; what a block costs is in closed form in _units.py. With a target, each block is put in alone, fitted to what the convolution gave,
and measured by the error of the network's outputs; the choice of the least harm is that of passes/_knapsack.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import onnx_ir as ir

from modelpress.spec.rewrite.blocks import RewriteBlocks
from modelpress.spec.step import FineTune
from workers.engine import data, layerwise, train
from workers.engine.context import Context
from workers.engine.errors import Diverged, NothingChanged, Unsupported
from workers.engine.graph import Graph, edit, match, shapes
from workers.engine.graph.build import Builder
from workers.engine.graph.ops import convolution
from workers.engine.passes import _knapsack, _lookahead, _moments, _outputs
from workers.engine.passes.rewrite import _inherit, _layers, _rewriting, _units
from workers.engine.passes.rewrite._layers import Subject
from workers.engine.passes.rewrite._units import Place, Unit

_KEEP, _REWRITE = 0, 1
_STEPS, _MOST_EPOCHS, _RATE = 128, 8, 1e-2
"""Of the fit of a block that is tried alone: fewer or slower, and blocks that begin anew are all as far off as guessing."""

_LISTED = 32
_LOST = 1e3
"""Harm of a block whose fit diverges."""


@dataclass(frozen=True)
class _Candidate:
    layer: match.Layer
    place: Place
    macs: int
    """Of the convolution."""
    size: int
    """Its parameters, with those behind it that a block may take the place of."""

    @property
    def name(self) -> str:
        return self.layer.weight


def apply(graph: Graph, step: RewriteBlocks, ctx: Context) -> Graph:
    """Replaces every convolution that may be, or those that a target asks for.

    Raises:
        NothingChanged: there is none.
        Unsupported: the target can't be reached.
        BadModel: a weight is not finite.
        Diverged: training gave NaN or infinity.
    """
    given = {} if ctx.train is None else {n: a.shape for n, a in ctx.train.batch([0]).items()}
    facts = shapes.measure(graph, shapes.example_shapes(graph, 1, given))
    unit = _unit(step)
    candidates = _candidates(graph, step, unit, facts, ctx)
    if step.target is not None:
        candidates = _chosen(graph, candidates, step, unit, sum(facts.macs.values()), ctx)
    teacher = graph.clone()
    made: list[str] = []
    for candidate in candidates:
        made += _replace(graph, candidate, unit, ctx)
        ctx.touched(candidate.name, _change(candidate, step, unit))
    before, after = sum(c.macs for c in candidates), sum(unit.macs(c.place) for c in candidates)
    ctx.note(f"multiply-accumulates of the layers {before:,} -> {after:,}")
    outputs = [_answer(teacher, candidate.layer, unit) for candidate in candidates]
    _rewriting.recover(graph, teacher, outputs, made, step, ctx)
    return graph


def survey(graph: Graph, ctx: Context) -> None:
    """Lists which convolutions could be replaced. Raises as `apply`."""
    step = RewriteBlocks()
    facts = shapes.measure(graph, _lookahead.input_shapes(graph))
    for candidate in _candidates(graph, step, _unit(step), facts, ctx):
        ctx.touched(candidate.name, _change(candidate, step, _unit(step)))


def _unit(step: RewriteBlocks) -> Unit:
    if step.block == "fire":
        return _units.Fire(step.squeeze)
    if step.block == "inverted_residual":
        return _units.InvertedResidual(step.expansion)
    if step.block == "shuffle":
        return _units.Shuffle(step.groups)
    return _units.Separable() if step.block == "separable" else _units.Ghost(step.ratio)


def _candidates(
    graph: Graph, step: RewriteBlocks, unit: Unit, facts: shapes.Facts, ctx: Context
) -> list[_Candidate]:
    """Those that get cheaper; the others are reported. Raises NothingChanged where there is none, or where a name is that of no layer."""
    _check_names(graph, step)
    found = []
    for subject in _layers.find(graph, step, ctx, convolutions_only=True):
        reason = _why_not(subject, step) or _open_padding(graph, subject.layers[0])
        candidate = None if reason else _candidate(graph, subject, facts)
        if candidate is not None:
            reason = unit.why_not(candidate.place) or _costs_more(candidate, unit)
        if reason or candidate is None:
            ctx.skipped(subject.name, reason)
        else:
            found.append(candidate)
    if not found:
        raise _layers.nothing(step, ctx)
    return found


def _check_names(graph: Graph, step: RewriteBlocks) -> None:
    layers = [layer for layer in match.layers(graph) if layer.kind == "Conv"]
    names = [(layer.weight, layer.name) for layer in layers]
    for pattern in step.layers:
        if not any(fnmatchcase(name, pattern) for both in names for name in both):
            known = ", ".join(f"'{weight}'" for weight, _ in names[:_LISTED])
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            raise NothingChanged(
                f"rewrite.blocks rewrote no layer: '{pattern}' in layers matches no convolution; there are {known or 'none'}{more}",
                hint="correct the name, or leave it out",
            )


def _why_not(subject: Subject, step: RewriteBlocks) -> str:
    layer = subject.layers[0]
    names = (layer.weight, layer.name)
    if not any(fnmatchcase(name, pattern) for name in names for pattern in step.layers):
        return "not among the layers that the recipe names"
    if len(subject.kernel) != 2:
        return f"its window has {len(subject.kernel)} axes; blocks have height and width"
    if max(subject.kernel) == 1:
        return "its kernel is 1: it is pointwise already"
    return "several layers share its weight" if len(subject.layers) > 1 else ""


def _open_padding(graph: Graph, layer: match.Layer) -> str:
    """Why a block can't have the padding, which it has in numbers; '' where it can."""
    auto_pad = layer.node.attributes.get_string("auto_pad", "NOTSET")
    is_by_size = auto_pad.startswith("SAME") and max(_pair(layer.node, "strides")) > 1
    sizes = [size for value in graph.inputs for size in list(value.shape or ())[1:]]
    if not is_by_size or all(isinstance(size, int) for size in sizes):
        return ""
    return f"its padding ({auto_pad} at a stride) goes by the size of the input, which the model leaves open"


def _costs_more(candidate: _Candidate, unit: Unit) -> str:
    macs = unit.macs(candidate.place)
    if macs < candidate.macs:
        return ""
    return f"too small to win: the block has {macs:,} multiply-accumulates, the layer {candidate.macs:,}"


def _candidate(graph: Graph, subject: Subject, facts: shapes.Facts) -> _Candidate:
    layer = subject.layers[0]
    (batch, _, *before), (_, _, *after) = (
        facts.shapes[value.name or ""] for value in (_input(layer), layer.node.outputs[0])
    )
    outputs, inputs = subject.weight.shape[:2]
    strides, dilations = (_pair(layer.node, name) for name in ("strides", "dilations"))
    auto_pad = layer.node.attributes.get_string("auto_pad", "NOTSET")
    pads = list(layer.node.attributes.get_ints("pads", ()))
    edges = convolution.window_pads(before, subject.kernel, strides, dilations, auto_pad, pads)
    place = Place(
        inputs,
        outputs,
        tuple(subject.kernel),
        tuple(strides),
        tuple(edges),
        tuple(dilations),
        batch * math.prod(before),
        batch * math.prod(after),
        _tail(layer),
    )
    size = subject.weight.size + place.parameters_behind(outputs)
    return _Candidate(layer, place, facts.macs[layer.name], size)


def _tail(layer: match.Layer) -> _units.Tail:
    if _norm(layer) is not None:
        return "norm"
    return "bias" if layer.bias is not None else "none"


def _input(layer: match.Layer) -> ir.Value:
    x = layer.node.inputs[0]
    assert x is not None, "a layer multiplies something"
    return x


def _pair(node: ir.Node, name: str) -> list[int]:
    return list(node.attributes.get_ints(name, (1, 1)))


def _norm(layer: match.Layer) -> ir.Node | None:
    """The normalization that alone reads what the convolution answers."""
    out = layer.node.outputs[0]
    uses = list(out.uses())
    if len(uses) != 1 or out.is_graph_output():
        return None
    node = uses[0].node
    is_norm = node.op_type == "BatchNormalization" and uses[0].idx == 0
    return node if is_norm and len(node.outputs) == 1 else None


def _answered(layer: match.Layer, unit: Unit) -> ir.Value:
    """The value that the block makes instead."""
    norm = _norm(layer) if unit.owns_norm else None
    return (norm or layer.node).outputs[0]


def _answer(teacher: Graph, layer: match.Layer, unit: Unit) -> str:
    """Its name, which the block's answer bears too."""
    same = next(other for other in match.layers(teacher) if other.name == layer.name)
    return _answered(same, unit).name or ""


def _replace(graph: Graph, candidate: _Candidate, unit: Unit, ctx: Context) -> list[str]:
    """Puts the block in. Answers the names of its weights."""
    layer, known = candidate.layer, set(graph.initializers)
    old = _answered(layer, unit)
    builder = Builder(graph, ctx.random(f"blocks/{candidate.name}"), before=layer.node)
    x = builder.assume(_input(layer), candidate.place.inputs)
    with builder.scope(layer.name):
        new = unit.build(builder, x, candidate.place)
    _inherit.weights(graph, layer, _norm(layer), unit, new)
    edit.replace_uses(old, new, outputs=True)
    new.name, old.name = old.name, graph.unused_name(f"{old.name}_before")
    new.shape, new.type = old.shape, old.type
    edit.remove_dead(graph)
    return [name for name in graph.parameters() if name not in known]


def _change(candidate: _Candidate, step: RewriteBlocks, unit: Unit) -> str:
    place = candidate.place
    return (
        f"{place.inputs} -> {place.outputs} channels, {'x'.join(map(str, place.kernel))}: {step.block}; multiply-accumulates "
        f"{candidate.macs:,} -> {unit.macs(place):,}, parameters {candidate.size:,} -> {unit.parameters(place):,}"
    )


def _chosen(
    graph: Graph,
    candidates: Sequence[_Candidate],
    step: RewriteBlocks,
    unit: Unit,
    macs: int,
    ctx: Context,
) -> list[_Candidate]:
    """Those whose blocks together harm least, so that the network keeps the target."""
    assert step.target is not None, "asked by the caller"
    by_macs = step.target.macs is not None
    whole = macs if by_macs else sum(array.size for array in graph.parameters().values())
    cost = {
        c.name: {
            _KEEP: float(c.macs if by_macs else c.size),
            _REWRITE: float(unit.macs(c.place) if by_macs else unit.parameters(c.place)),
        }
        for c in candidates
    }
    rest = whole - sum(of[_KEEP] for of in cost.values())
    wanted = step.target.fraction * whole - rest
    least = sum(min(of.values()) for of in cost.values())
    if least > wanted:
        raise Unsupported(
            f"the target {step.target.fraction:g} can't be reached: with every layer as small as it gets, {(least + rest) / whole:.3f} are left",
            hint="ask for a larger fraction, another block, or exclude fewer layers",
        )
    harm = {
        name: {_KEEP: 0.0, _REWRITE: h} for name, h in _harms(graph, candidates, step, unit, ctx)
    }
    choices = _knapsack.least_harm(harm, cost, wanted)
    assert choices is not None, "the cheapest choices keep the target"
    for candidate in candidates:
        if choices[candidate.name] == _KEEP:
            ctx.skipped(candidate.name, "the target is met with it as it is")
    return [c for c in candidates if choices[c.name] == _REWRITE]


def _harms(
    graph: Graph, candidates: Sequence[_Candidate], step: RewriteBlocks, unit: Unit, ctx: Context
) -> list[tuple[str, float]]:
    """||outputs with one block alone, fitted to its layer - outputs||^2 / ||outputs||^2, by weight."""
    samples, found = _moments.taken(step.samples, ctx), []
    wanted = _outputs.Network(graph, samples, ctx).outputs({})
    for number, candidate in enumerate(candidates, start=1):
        try:
            trial = _outputs.Network(_alone(graph, candidate, step, unit, ctx), samples, ctx)
            harm = _outputs.error(trial.outputs({}), wanted)
            what = f"relative squared error {harm:.3g}"
        except Diverged as error:
            harm, what = _LOST, f"taken as lost, since {error.message}"
        ctx.note(f"'{candidate.name}' alone as a block, fitted: {what}")
        found.append((candidate.name, harm))
        ctx.report(number / len(candidates), f"trying a block in the place of layer {number}")
    return found


def _alone(
    graph: Graph, candidate: _Candidate, step: RewriteBlocks, unit: Unit, ctx: Context
) -> Graph:
    """The network with one block, after a short fit to what the layer gave."""
    trial = graph.clone()
    layer = next(other for other in match.layers(trial) if other.name == candidate.layer.name)
    made = _replace(trial, replace(candidate, layer=layer), unit, ctx)
    name = _answer(graph, candidate.layer, unit)
    quiet = replace(ctx, scope=f"{ctx.scope}/{candidate.name}", report=lambda fraction, text: None)
    fit, few = _fit(step, ctx)
    layerwise.fit(trial, graph, [(name, name)], fit, replace(quiet, train=few), train=made)
    return trial


def _fit(step: RewriteBlocks, ctx: Context) -> tuple[FineTune, data.Dataset]:
    """So many steps however many samples there are, in the batches of the step's own layerwise training."""
    assert ctx.train is not None, "the recipe was checked: a target has data"
    given = step.layerwise or FineTune()
    few = ctx.train.take(_STEPS * given.batch_size, ctx.seed)
    epochs = min(_MOST_EPOCHS, math.ceil(_STEPS / train.steps_in_epoch(few, given)))
    fit = FineTune(epochs=epochs, learning_rate=_RATE, batch_size=given.batch_size)
    return fit, few
