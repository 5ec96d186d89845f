"""Rules of attention in one node. Queries, keys and values lose whole heads, or the same places of every head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from workers.engine.graph.channels import _shadow
from workers.engine.graph.channels._book import Node
from workers.engine.graph.channels._shadow import Shadow

Tensor = torch.Tensor

HEADS, WIDTH = 0, 1
"""Axes of a packed operand's channels, [heads, width]."""


@dataclass(frozen=True)
class _Labels:
    """Of queries, keys or values: [heads] and [width]; zeros where channels are not told apart by it."""

    heads: Tensor
    width: Tensor


def attention(node: Node) -> list[Shadow]:
    """q: [N, heads, T, size] or [N, T, heads * size] -> the same form, of the width of values."""
    if len(node.results) > 1 or any(node.has(slot) for slot in (4, 5)):
        return _whole(node, "has a state from call to call")
    packed = len(node.shape(0)) == 3
    if any(node.varying(slot) not in ((-1, 2) if packed else (-1, 1, 3)) for slot in range(3)):
        return _whole(node, "has channels on an axis of time")
    q, k, v = (_packed(node, s) if packed else _apart(node, s) for s in range(3))
    size = q.width.numel()
    repeats = q.heads.numel() // k.heads.numel()
    node.unify(q.width, k.width)
    for other in (k, v):
        node.unify(q.heads, other.heads.repeat_interleave(repeats))
    _mask(node, q.heads)
    node.fix("scale", q.width, 1 / math.sqrt(size))
    return [_joined(node, q.heads, v.width) if packed else _result(node, q.heads, v.width)]


def _whole(node: Node, why: str) -> list[Shadow]:
    for slot in node.slots():
        node.pin(slot, why)
    return node.blanks()


def _apart(node: Node, slot: int) -> _Labels:
    return _Labels(node.along(slot, 1), node.along(slot, 3))


def _packed(node: Node, slot: int) -> _Labels:
    """Labels of [heads * size], unified until they vary with the head alone or with the place in it."""
    name = "q_num_heads" if slot == 0 else "kv_num_heads"
    rows = node.along(slot, 2).reshape(node.attribute(name, 1), -1)
    none = torch.zeros_like(rows)
    by_heads = _by_heads(node)
    node.choose(HEADS if by_heads else WIDTH)
    if by_heads:
        node.unify(rows, rows[:, :1])
        if slot < 2:
            node.count(name, rows[:, 0])
        return _Labels(rows[:, 0], none[0])
    node.unify(rows, rows[:1])
    return _Labels(none[:, 0], rows[0])


def _by_heads(node: Node) -> bool:
    """Whether heads are told apart: where that was asked for, or where there are more of them than places in each."""
    if node.kept_axis >= 0:
        return node.kept_axis == HEADS
    return bool(node.attribute("q_num_heads", 1) ** 2 > node.shape(0)[2])


def _mask(node: Node, heads: Tensor) -> None:
    """Of [..., heads, T, keys]: one for each head goes with it."""
    if not node.has(3):
        return
    rank = len(node.shape(3))
    own = rank - 3
    if node.is_initializer(3):
        node.pin_axes(3, keep=own)
    elif node.varying(3) not in (-1, own):
        node.pin(3, "has channels on an axis of time")
    if own >= 0 and node.shape(3)[own] > 1:
        node.unify(node.along(3, own), heads)


def _joined(node: Node, heads: Tensor, width: Tensor) -> Shadow:
    shape = tuple(node.results[0].shape)
    by_heads = bool((heads != 0).any())
    count, size = heads.numel(), width.numel()
    return _shadow.lined(
        shape, 2, heads.repeat_interleave(size) if by_heads else width.repeat(count)
    )


def _result(node: Node, heads: Tensor, width: Tensor) -> Shadow:
    """Only one axis can be followed: of the two, that of the width of values."""
    shape = tuple(node.results[0].shape)
    if not bool((width != 0).any()):
        return _shadow.lined(shape, 1, heads)
    node.book.labels.pin(heads, f"{node.title} leads it to an axis that is not followed")
    return _shadow.lined(shape, 3, width)


def rotary_embedding(node: Node) -> list[Shadow]:
    """Turns places of a head into each other by tables, so only whole heads can go. x as that of attention."""
    if len(node.shape(0)) == 4 and node.varying(0) in (-1, 1):
        return node.carried()
    if len(node.shape(0)) == 3 and node.varying(0) in (-1, 2):
        rows = node.along(0, 2).reshape(node.attribute("num_heads", 1), -1)
        node.unify(rows, rows[:, :1])
        node.count("num_heads", rows[:, 0])
        return node.carried()
    return _whole(node, "turns the places of a head into each other")
