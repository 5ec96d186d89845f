"""How far each layer goes, and whether: the least harm to the network within what it may cost.

harm(layer, rank) = ||outputs with this layer alone at this rank - outputs||^2 / ||outputs||^2

Harms are taken to add up, as in passes/quantize/_mixed.py, and the choice is that of passes/_knapsack.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from modelpress.spec.report import Curve, CurvePoint
from modelpress.spec.rewrite import Rewriting
from workers.engine.context import Context
from workers.engine.errors import Unsupported
from workers.engine.graph import Graph, match, shapes
from workers.engine.passes import _knapsack, _moments, _outputs
from workers.engine.passes.rewrite import _known
from workers.engine.passes.rewrite._decomposition import Decomposition, Factors, Rank, Slot
from workers.engine.passes.rewrite._layers import Candidate

AMOUNTS = 8
"""Ranks that are tried of each layer."""
KEEP = -1
"""The choice of a layer that stays as it is."""


def spread(decomposition: Decomposition, most: int | None = None) -> tuple[Rank, ...]:
    """Up to `AMOUNTS` ranks that save something, at even steps of their size, the largest of which may be given."""
    saving = [rank for rank in decomposition.ranks[:most] if decomposition.saves(rank)]
    places = np.linspace(len(saving), 0, AMOUNTS, endpoint=False)
    return tuple(saving[n] for n in sorted({math.ceil(place) - 1 for place in places}) if n >= 0)


def choose(
    graph: Graph, candidates: Sequence[Candidate], step: Rewriting, ctx: Context
) -> dict[str, tuple[Rank, Factors]]:
    """By weight, what is rewritten and how; the others stay.

    Raises:
        Unsupported: the target can't be reached with these layers.
    """
    assert step.target is not None, "asked by the caller"
    settled = [c for c in candidates if c.is_settled]
    free = [c for c in candidates if not c.is_settled]
    known = _known.harms(free, ctx)
    free = known[0] if known is not None else free
    candidates = [*free, *settled]
    made = {c.subject.name: [c.decomposition.factors(rank) for rank in c.ranks] for c in candidates}
    harm = known[1] if known is not None else _harms(graph, free, made, step, ctx)
    for candidate in free:
        _draw(candidate, harm[candidate.subject.name], ctx)
    harm = {name: {KEEP: 0.0} | of for name, of in harm.items()}
    whole, cost = _costs(graph, candidates, step, ctx)
    rest = whole - sum(of[KEEP] for of in cost.values())
    for name in (c.subject.name for c in settled):
        harm[name], cost[name] = {0: 0.0}, {0: cost[name][0]}
    choices = _knapsack.least_harm(harm, cost, step.target.fraction * whole - rest)
    if choices is None:
        least = rest + sum(min(of.values()) for of in cost.values())
        what = "macs" if step.target.macs is not None else "bytes"
        raise Unsupported(
            f"target {what} {step.target.fraction:g} can't be reached: with every layer as small as it gets, {least / whole:.3f} are left",
            hint=f"ask for a larger fraction of {what}, or exclude fewer layers",
        )
    reached = rest + sum(cost[name][choice] for name, choice in choices.items())
    ctx.note(
        f"layers were chosen by the error of the outputs with one rewritten alone: {_of(step)} {whole:,.0f} -> {reached:,.0f}"
    )
    return {
        c.subject.name: (
            c.ranks[choices[c.subject.name]],
            made[c.subject.name][choices[c.subject.name]],
        )
        for c in candidates
        if choices[c.subject.name] != KEEP
    }


def _of(step: Rewriting) -> str:
    assert step.target is not None, "asked by the caller"
    return "multiply-accumulates" if step.target.macs is not None else "bytes of weights"


def _harms(
    graph: Graph,
    candidates: Sequence[Candidate],
    made: Mapping[str, Sequence[Factors]],
    step: Rewriting,
    ctx: Context,
) -> dict[str, dict[int, float]]:
    network = _outputs.Network(graph, _moments.taken(step.samples, ctx), ctx)
    wanted = network.outputs({})
    found: dict[str, dict[int, float]] = {}
    for number, candidate in enumerate(candidates, start=1):
        name = candidate.subject.name
        found[name] = {
            index: _outputs.error(
                network.outputs({name: candidate.subject.restored(factors.product)}), wanted
            )
            for index, factors in enumerate(made[name])
        }
        ctx.report(number / len(candidates), f"measuring what rewriting layer {number} costs")
    return found


def _draw(candidate: Candidate, harm: Mapping[int, float], ctx: Context) -> None:
    """Leaves what was measured of a layer as a curve."""
    whole = candidate.decomposition.weight.size
    points = tuple(
        CurvePoint(x=candidate.decomposition.size(rank) / whole, mean=harm[index])
        for index, rank in enumerate(candidate.ranks)
    )
    ctx.coverage.curves.append(
        Curve(
            name=candidate.subject.name,
            x="fraction of the weights",
            y="squared error of the outputs, relative",
            points=points,
        )
    )


def _costs(
    graph: Graph, candidates: Sequence[Candidate], step: Rewriting, ctx: Context
) -> tuple[float, dict[str, dict[int, float]]]:
    """Of the whole network, and of each layer by choice."""
    assert step.target is not None, "asked by the caller"
    if step.target.bytes is not None:
        whole = float(sum(array.nbytes for array in graph.parameters().values()))
        return whole, {c.subject.name: _bytes(c) for c in candidates}
    given = {
        name: array.shape for name, array in (ctx.train.batch([0]) if ctx.train else {}).items()
    }
    facts = shapes.measure(graph, shapes.example_shapes(graph, 1, given))
    return float(sum(facts.macs.values())), {c.subject.name: _macs(c, facts) for c in candidates}


def _bytes(candidate: Candidate) -> dict[int, float]:
    of = candidate.decomposition
    return {KEEP: 4.0 * of.weight.size} | {
        index: 4.0 * of.size(rank) for index, rank in enumerate(candidate.ranks)
    }


def _macs(candidate: Candidate, facts: shapes.Facts) -> dict[int, float]:
    layers = candidate.subject.layers
    return {KEEP: float(sum(facts.macs[layer.name] for layer in layers))} | {
        index: float(
            sum(
                _row_macs(candidate.decomposition.slots(rank), *_places(layer, facts))
                for layer in layers
            )
        )
        for index, rank in enumerate(candidate.ranks)
    }


def _places(layer: match.Layer, facts: shapes.Facts) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The batch and the sizes of space before a convolution and behind it; of a product, how often it is taken, on both sides."""
    x, y = layer.node.inputs[0], layer.node.outputs[0]
    assert x is not None, "a layer multiplies something"
    before, after = facts.shapes[x.name or ""], facts.shapes[y.name or ""]
    if layer.kind == "Conv":
        return (before[0], *before[2:]), (after[0], *after[2:])
    return after[:-1], after[:-1]


def _row_macs(slots: Sequence[Slot], before: Sequence[int], after: Sequence[int]) -> int:
    """Multiply-accumulates of a row of layers; `before` and `after` are the batch and the sizes of space in front of it and behind.

    An axis has its size behind from the slot on that walks along it.
    """
    total, sizes = 0, list(before)
    for slot in slots:
        for axis in slot.axes:
            sizes[axis + 1] = after[axis + 1]
        total += slot.weights * math.prod(sizes)
    return total
