"""What each method does to one layer: an entry of METHODS, and a function that answers the changed layer for each amount.

A new method is one of each, and an entry of spec/sensitivity.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from modelpress.spec import sensitivity
from modelpress.spec.prune import PruneChannels
from modelpress.spec.quantize import QuantizeBits
from workers.engine.graph import Graph, channels, shapes
from workers.engine.passes.analyze._form import Array, Form, Subject
from workers.engine.passes.prune._selection import Candidates, Member
from workers.engine.passes.quantize import _affine
from workers.engine.passes.quantize import _rounding as rounding


@dataclass(frozen=True)
class Change:
    """The network with one layer compressed."""

    size_bytes: tuple[int, int]
    """Of the weights that change: before, after."""
    macs: tuple[int, int] | None = None
    """Of the nodes that compute less: before, after; null where none does."""
    weights: Mapping[str, Array] = field(default_factory=dict)
    """Other weights in the place of these."""
    rounded: tuple[str, ...] = ()
    """Values that are rounded to 8 bits before anybody reads them."""
    graph: Graph | None = None
    """Another graph, where other weights are not enough."""


Changes = Iterator[tuple[float, Change]]


@dataclass(frozen=True)
class Method:
    """One way to compress a layer."""

    form: Literal["plain", "folded"]
    """The form of the network that it takes."""
    changes: Callable[[Form, Subject, Sequence[float]], Changes]
    """The layer at each amount; amounts that change nothing are left out."""
    subjects: Callable[[Form], Sequence[Subject]] = lambda form: form.layers
    why_not: Callable[[Form, Subject], str] = lambda form, subject: ""
    """Why a layer can't be compressed so; '' where it can."""


def bits(form: Form, subject: Subject, amounts: Sequence[float]) -> Changes:
    """Weights rounded to nearest in groups, as quantize.bits stores them."""
    weight, matrix = form.weight(subject), form.matrix(subject)
    asked = QuantizeBits(group_size=form.step.group_size)
    for amount in amounts:
        packed = rounding.rounded(weight, matrix, int(amount), None, asked).packed
        size_bytes = sum(packed.bytes_of.values())
        yield amount, Change((weight.nbytes, size_bytes), weights={subject.name: packed.decoded()})


def int8(form: Form, subject: Subject, amounts: Sequence[float]) -> Changes:
    """Weights in 8 bits with a scale for each output, and inputs in 8 bits between their extremes on the samples."""
    weight = np.asarray(form.weight(subject), np.float32)
    codes = _affine.weight(weight, subject.users[0].out_axis, _affine.FULL_RANGE, None)
    inputs = (layer.node.inputs[0] for layer in subject.users)
    names = dict.fromkeys(value.name or "" for value in inputs if value is not None)
    for amount in amounts:
        yield (
            amount,
            Change(
                (weight.nbytes, codes.codes.nbytes + codes.scale.nbytes),
                weights={subject.name: _affine.decode_weight(codes)},
                rounded=tuple(names),
            ),
        )


def magnitude(form: Form, subject: Subject, amounts: Sequence[float]) -> Changes:
    """The smallest weights of the layer set to zero; what is left counts 4 bytes each, and a bit for each place."""
    weight = form.weight(subject)
    order = np.argsort(np.abs(weight), axis=None, kind="stable")
    for amount in amounts:
        gone = order[: math.floor(amount * weight.size + 1e-9)]
        if not gone.size:
            continue
        pruned = weight.copy()
        pruned.flat[gone] = 0
        size_bytes = int(np.count_nonzero(pruned)) * weight.itemsize + -(-weight.size // 8)
        yield amount, Change((weight.nbytes, size_bytes), weights={subject.name: pruned})


def low_rank(form: Form, subject: Subject, amounts: Sequence[float]) -> Changes:
    """The largest singular values of the layer's matrix, group by group; two factors take the place of the weight."""
    weight, matrix = form.weight(subject), form.matrix(subject)
    rows = torch.from_numpy(matrix.to_rows(weight).astype(np.float32))
    parts = [torch.linalg.svd(part, full_matrices=False) for part in rows.chunk(matrix.groups)]
    height, macs = matrix.rows // matrix.groups, form.macs_of(subject)
    full = min(height, matrix.columns)
    for amount in amounts:
        rank = max(1, round(amount * full))
        kept = torch.cat([(u[:, :rank] * s[:rank]) @ v[:rank] for u, s, v in parts]).numpy()
        share = rank * (height + matrix.columns) / (height * matrix.columns)
        yield (
            amount,
            Change(
                (weight.nbytes, round(share * weight.nbytes)),
                (macs, round(share * macs)),
                weights={subject.name: np.asarray(matrix.from_rows(kept), np.float32)},
            ),
        )


def remove_channels(form: Form, subject: Subject, amounts: Sequence[float]) -> Changes:
    """The channels of least norm removed, with everything that depends on them, as prune.channels does."""
    assert subject.family is not None
    plan, family = form.plan, subject.family
    before = form.graph.parameters()
    for amount in amounts:
        asked = PruneChannels(fraction=amount, max_layer_fraction=max(amount, 0.5))
        member = Member(family, len(family.classes))
        ties = np.arange(plan.classes.count)
        removed = Candidates(plan, [member], form.scores, ties, asked, 1.0).choose(amount)
        if not removed.any():
            continue
        graph = form.graph.clone()
        channels.surgery.remove(graph, plan, removed, form.shapes, is_checked=False)
        after = graph.parameters()
        cut = [name for name in before if after[name].shape != before[name].shape]
        size_bytes = sum(before[n].nbytes for n in cut), sum(after[n].nbytes for n in cut)
        yield amount, Change(size_bytes, _fewer(form, graph), graph=graph)


def _fewer(form: Form, graph: Graph) -> tuple[int, int] | None:
    """Multiply-accumulates of the nodes that compute less, before and after."""
    now = shapes.macs(graph, form.shapes)
    changed = [name for name, count in form.macs.items() if now.get(name, 0) != count]
    if not changed:
        return None
    return sum(form.macs[n] for n in changed), sum(now.get(n, 0) for n in changed)


def _why_not_low_rank(form: Form, subject: Subject) -> str:
    if subject.users[0].kind == "ConvTranspose":
        return "ConvTranspose is not factored"
    matrix = form.matrix(subject)
    full = min(matrix.rows // matrix.groups, matrix.columns)
    return "" if full > 1 else "its matrix has rank 1 in each group"


METHODS: Mapping[sensitivity.Method, Method] = {
    "bits": Method("folded", bits),
    "int8": Method("folded", int8),
    "magnitude": Method("plain", magnitude),
    "channels": Method("plain", remove_channels, subjects=lambda form: form.families),
    "low_rank": Method("plain", low_rank, why_not=_why_not_low_rank),
}
