"""rewrite.low_rank: layers as products of thinner ones.

    Gemm [M, N]           becomes    Gemm [K, N] -> Gemm [M, K]
    Conv [O, I, kh, kw]   becomes    Conv [K, I, kh, 1] -> Conv [O, K, 1, kw]                                     spatial
                                     Conv [K, I, kh, kw] -> Conv [O, K, 1, 1]                                     channel
                                     Conv [r, I, 1, 1] -> Conv [s, r, kh, kw] -> Conv [O, s, 1, 1]                tucker
                                     Conv [R, I, 1, 1] -> R times kh x 1 -> R times 1 x kw -> Conv [O, R, 1, 1]   cp

No activation is between them. The last keeps the layer's node, name and bias. A layer whose rank would save nothing is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from modelpress.spec.rewrite import RewriteLowRank
from modelpress.spec.rewrite.low_rank import RANKS
from workers.engine.context import Context
from workers.engine.errors import Unsupported
from workers.engine.graph import Graph
from workers.engine.passes import _moments, _overrides, _weights
from workers.engine.passes._matrix import Matrix
from workers.engine.passes.rewrite import _layers, _rewriting, _target
from workers.engine.passes.rewrite._decomposition import Decomposition, Factors, Rank, Spatial, Svd
from workers.engine.passes.rewrite._layers import Candidate, Subject
from workers.engine.passes.rewrite._tensors import Cp, Tucker

_DAMPING = 1e-4
"""Share of the mean diagonal of the second moments that is added to it, so that directions no sample has do not go for nothing."""


def apply(graph: Graph, step: RewriteLowRank, ctx: Context) -> Graph:
    """Rewrites every layer that the recipe does not exclude and that gets smaller by it.

    Raises:
        NothingChanged: there is none, or an override has no effect.
        Unsupported: the target can't be reached, or an override has another number of ranks than its layer.
        BadModel: a weight, or an input of a layer on training samples, is not finite.
        Diverged: training gave NaN or infinity.
    """
    _weights.turn(graph)
    found = _layers.find(graph, step, ctx)
    own = _own_ranks(found, step)
    subjects = _asked(found, own, step, ctx)
    roots = _roots(graph, subjects, step, ctx) if step.activation_aware else {}
    candidates = [
        candidate
        for subject in subjects
        if (candidate := _candidate(subject, step, own, roots, ctx)) is not None
    ]
    if not candidates:
        raise _layers.nothing(step, ctx)
    chosen = _chosen(graph, candidates, step, ctx)
    _rewriting.perform(graph, candidates, chosen, step, ctx)
    return graph


def survey(graph: Graph, ctx: Context) -> None:
    """Lists what could be rewritten, and from which rank on it would not pay. Raises as `apply`."""
    step = RewriteLowRank(ratio=2)
    _weights.turn(graph)
    for subject in _layers.find(graph, step, ctx):
        limit = _limit(subject)
        if limit > 1:
            ctx.touched(subject.name, f"can be a product of rank below {limit:.1f}")
        else:
            ctx.skipped(subject.name, "a product of rank 1 would have as many weights")
    if not ctx.coverage.touched:
        raise _layers.nothing(step, ctx)


def _limit(subject: Subject) -> float:
    """MN/(M+N) of the weight as a matrix."""
    rows = subject.weight.shape[0]
    columns = subject.weight.size // rows
    return float(rows * columns / (rows + columns))


def form(
    subject: Subject, step: RewriteLowRank, root: torch.Tensor | None, ctx: Context
) -> Decomposition:
    """What a layer is written as."""
    kernel = subject.kernel
    is_wide = any(size > 1 for size in kernel)
    if step.convolution == "tucker" and is_wide:
        return Tucker(subject.weight)
    if step.convolution == "cp" and is_wide:
        return Cp(subject.weight, ctx.generator(f"cp/{subject.name}"))
    if step.convolution == "spatial" and len(kernel) == 2 and min(kernel) > 1:
        return Spatial(subject.weight)
    return Svd(subject.weight, root)


def _own_ranks(subjects: Sequence[Subject], step: RewriteLowRank) -> dict[str, int | Rank]:
    """What the recipe says of single layers, by weight. Raises NothingChanged where it says it of none."""
    layers = {subject.name: subject.layers[0] for subject in subjects}
    return _overrides.of(layers, ((o.layers, o.rank) for o in step.overrides), "rewritten")


def _asked(
    subjects: Sequence[Subject], own: Mapping[str, int | Rank], step: RewriteLowRank, ctx: Context
) -> Sequence[Subject]:
    """Those that a rule or an override is about; the others are reported."""
    if any(getattr(step, rule) is not None for rule in RANKS):
        return subjects
    for subject in subjects:
        if subject.name not in own:
            ctx.skipped(subject.name, "no override names it, and nothing else says a rank")
    return [subject for subject in subjects if subject.name in own]


def _candidate(
    subject: Subject,
    step: RewriteLowRank,
    own: Mapping[str, int | Rank],
    roots: Mapping[str, torch.Tensor],
    ctx: Context,
) -> Candidate | None:
    """The layer at the ranks that are asked for; null where they save nothing, which is reported."""
    is_settled = subject.name in own
    made = form(subject, step, roots.get(subject.name), ctx)
    ranks = (_named(made, subject, own[subject.name]),) if is_settled else _ranks(made, step)
    if ranks and made.saves(ranks[0]):
        if not is_settled and step.ratio is not None:
            _tell_out_of_reach(subject, made, ranks[0], step.ratio, ctx)
        return Candidate(subject, made, ranks, is_settled)
    ctx.skipped(subject.name, made.why_not(ranks[0] if ranks else made.ranks[0]))
    return None


def _tell_out_of_reach(
    subject: Subject, made: Decomposition, rank: Rank, ratio: float, ctx: Context
) -> None:
    times = subject.weight.size / made.size(rank)
    if times < ratio:
        ctx.note(
            f"'{subject.name}': a ratio of {ratio:g} is out of reach, its smallest rank has {times:.2f} times fewer weights"
        )


def _named(made: Decomposition, subject: Subject, rank: int | Rank) -> Rank:
    try:
        return made.named(rank)
    except ValueError as error:
        raise Unsupported(
            f"'{subject.name}' {error}",
            layer=subject.name,
            hint="give convolutions by Tucker-2 [outputs, inputs], and other layers one number; overrides may tell them apart by name",
        ) from None


def _ranks(made: Decomposition, step: RewriteLowRank) -> tuple[Rank, ...]:
    if step.ratio is not None:
        return (made.at_ratio(step.ratio),)
    if step.energy is not None:
        return (made.at_energy(step.energy),)
    return _target.spread(made)


def _chosen(
    graph: Graph, candidates: Sequence[Candidate], step: RewriteLowRank, ctx: Context
) -> dict[str, tuple[Rank, Factors]]:
    if step.target is not None:
        return _target.choose(graph, candidates, step, ctx)
    return {c.subject.name: (c.ranks[0], c.decomposition.factors(c.ranks[0])) for c in candidates}


def _roots(
    graph: Graph, subjects: Sequence[Subject], step: RewriteLowRank, ctx: Context
) -> dict[str, torch.Tensor]:
    """By weight, L with L L^T the mean second moments of a layer's inputs, for those that are taken as matrices."""
    wanted = [s for s in subjects if type(form(s, step, None, ctx)) is Svd]
    matrices = {s.name: Matrix.of(graph, s.layers[0]) for s in wanted}
    narrow = [n for n, matrix in matrices.items() if matrix.columns <= _moments.MAX_COLUMNS]
    for subject in subjects:
        if subject.name not in matrices:
            reason = f"by '{step.convolution}' it is not taken as a matrix"
        elif subject.name not in narrow:
            reason = f"its matrix has {matrices[subject.name].columns:,} columns, inputs are looked at up to {_moments.MAX_COLUMNS:,}"
        else:
            continue
        ctx.note(f"'{subject.name}' was factored by its weights alone: {reason}")
    found: dict[str, torch.Tensor] = {}
    for names in _moments.passes(narrow, matrices):
        layers = [layer for s in wanted if s.name in names for layer in s.layers]
        moments = _moments.gather(graph, layers, matrices, step.samples, ctx)
        found |= {name: _root(moments[name]) for name in names}
    return found


def _root(moments: _moments.Moments) -> torch.Tensor:
    """Lower triangular, [columns, columns] float64."""
    h = moments.h[0].cpu() / max(moments.places, 1)
    mean = float(h.diagonal().mean())
    h.diagonal().add_(_DAMPING * mean if mean > 0 else 1.0)
    root: torch.Tensor = torch.linalg.cholesky(h)
    return root
