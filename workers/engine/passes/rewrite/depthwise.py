"""rewrite.depthwise: convolutions as depthwise ones and pointwise ones.

    Conv [O, I, k, k]    becomes    Conv [I, 1, k, k] of I groups -> Conv [O, I, 1, 1]

Each input channel's filters [O, k * k] are approximated by one, times a number for each output: the first singular vectors. With a multiplier m,
by m of them. Weights over those of the convolution: m (1/O + 1/k^2).
"""

from __future__ import annotations

import math

from modelpress.spec.rewrite import RewriteDepthwise
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.passes.rewrite import _layers, _rewriting, _target
from workers.engine.passes.rewrite._decomposition import Depthwise
from workers.engine.passes.rewrite._layers import Candidate, Subject


def apply(graph: Graph, step: RewriteDepthwise, ctx: Context) -> Graph:
    """Rewrites every convolution that the recipe does not exclude and that gets smaller by it.

    Raises:
        NothingChanged: there is none.
        Unsupported: the target can't be reached.
        BadModel: a weight is not finite.
        Diverged: training gave NaN or infinity.
    """
    candidates = [_candidate(subject, step) for subject in _found(graph, step, ctx)]
    if step.target is not None:
        chosen = _target.choose(graph, candidates, step, ctx)
    else:
        chosen = {
            c.subject.name: (c.ranks[-1], c.decomposition.factors(c.ranks[-1])) for c in candidates
        }
    _rewriting.perform(graph, candidates, chosen, step, ctx)
    _note_ratios(candidates, {name: rank[0] for name, (rank, _) in chosen.items()}, ctx)
    return graph


def survey(graph: Graph, ctx: Context) -> None:
    """Lists which convolutions could be rewritten. Raises as `apply`."""
    for subject in _found(graph, RewriteDepthwise(), ctx):
        outputs, places = subject.weight.shape[0], math.prod(subject.kernel)
        ctx.touched(subject.name, f"to {1 / outputs + 1 / places:.1%} of its weights")


def _found(graph: Graph, step: RewriteDepthwise, ctx: Context) -> list[Subject]:
    """Raises NothingChanged where there is none."""
    found = []
    for subject in _layers.find(graph, step, ctx, convolutions_only=True):
        reason = _why_not(subject, step)
        if reason:
            ctx.skipped(subject.name, reason)
        else:
            found.append(subject)
    if not found:
        raise _layers.nothing(step, ctx)
    return found


def _why_not(subject: Subject, step: RewriteDepthwise) -> str:
    outputs, inputs = subject.weight.shape[:2]
    places = math.prod(subject.kernel)
    if places == 1:
        return "its kernel is 1: it is pointwise already"
    if inputs < step.min_inputs:
        return f"it has {inputs} input channels, min_inputs is {step.min_inputs}"
    most = 1 if step.target is not None else step.multiplier
    if most * (outputs + places) >= outputs * places:
        return (
            f"{most} filters of each channel save nothing: not below Ok^2/(O+k^2) = {outputs * places / (outputs + places):.1f} with "
            f"O = {outputs}, k^2 = {places}"
        )
    return ""


def _candidate(subject: Subject, step: RewriteDepthwise) -> Candidate:
    made = Depthwise(subject.weight)
    if step.target is not None:
        return Candidate(subject, made, _target.spread(made, step.multiplier))
    return Candidate(subject, made, ((min(step.multiplier, len(made.ranks)),),))


def _note_ratios(candidates: list[Candidate], ranks: dict[str, int], ctx: Context) -> None:
    """Says how many weights are left beside the formula."""
    for candidate in candidates:
        name, made = candidate.subject.name, candidate.decomposition
        if name in ranks:
            outputs, places, m = made.shape[0], math.prod(made.kernel), ranks[name]
            ctx.note(
                f"'{name}': {made.size((m,)) / made.weight.size:.4f} of the weights; {m} * (1/O + 1/k^2) = "
                f"{m * (1 / outputs + 1 / places):.4f} with O = {outputs}, k^2 = {places}"
            )
