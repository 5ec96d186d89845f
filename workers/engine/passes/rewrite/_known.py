"""What truncating the matrices of layers costs the network, where `analyze.sensitivity` has measured it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workers.engine.context import Context
from workers.engine.passes.rewrite._decomposition import Svd
from workers.engine.passes.rewrite._layers import Candidate

Harms = dict[str, dict[int, float]]
"""Squared error of the outputs by layer and by index of its rank."""


def harms(candidates: Sequence[Candidate], ctx: Context) -> tuple[list[Candidate], Harms] | None:
    """The layers at the ranks that were measured, and what these cost; null where something was not.

    What was measured is the plain singular value decomposition of the whole matrix, [outputs, inputs * kernel].
    """
    known = ctx.sensitivity
    if known is None or not candidates:
        return None
    if not all(_is_plain(c) for c in candidates):
        ctx.note(
            "what layers cost alone was measured anew: what is known is of plain truncation of whole matrices, as by convolution = 'channel'"
        )
        return None
    sizes = {c.subject.name: c.subject.stored for c in candidates}
    if missing := known.missing("low_rank", sizes, ()):
        ctx.note(f"what layers cost alone was measured anew: in what is known, {missing}")
        return None
    ctx.note(f"what layers cost alone was known, from {known.samples:,} training samples")
    found, errors = {}, known.errors("low_rank")
    at = []
    for candidate in candidates:
        name, of = candidate.subject.name, candidate.decomposition
        costs = {(max(1, round(a * len(of.ranks))),): e**2 for a, e in errors[name].items()}
        ranks = tuple(rank for rank in sorted(costs) if of.saves(rank))
        at.append(replace(candidate, ranks=ranks))
        found[name] = {index: costs[rank] for index, rank in enumerate(ranks)}
    return at, found


def _is_plain(candidate: Candidate) -> bool:
    of = candidate.decomposition
    return type(of) is Svd and of.root is None
