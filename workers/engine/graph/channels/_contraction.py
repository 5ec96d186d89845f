"""Rules of layers: what multiplies and sums over channels makes new ones."""

from __future__ import annotations

import string
from collections.abc import Sequence

import torch

from workers.engine.graph.channels import _shadow
from workers.engine.graph.channels._book import Node
from workers.engine.graph.channels._shadow import Shadow

Tensor = torch.Tensor


def conv(node: Node) -> list[Shadow]:
    """x: [N, C, ...], w: [O, C / groups, ...] -> [N, O, ...]; also O and C of ConvTranspose's w: [C, O / groups, ...]."""
    transposed = node.kind == "ConvTranspose"
    if node.varying(0) == 0 and node.is_initializer(1):
        return _sample_by_sample(node)
    if _is_pointwise(node, node.varying(0)):
        return _place_by_place(node)
    if node.varying(0) > 1 or not node.is_initializer(1):
        return _unknown_kernel(node)
    groups = node.attribute("group", 1)
    inner, outer = node.shape(0)[1] // groups, node.results[0].shape[1] // groups
    if groups == 1:
        out = _dense(node, transposed)
    elif inner == 1:
        out = _depthwise(node, groups, outer, transposed)
    else:
        out = _grouped(node, groups, transposed)
    shadow = _shadow.lined(tuple(node.results[0].shape), 1, out)
    _bias(node, out)
    return [shadow]


def _sample_by_sample(node: Node) -> list[Shadow]:
    """Channels were made samples: each keeps its own, and the weights stay."""
    for slot in (1, 2):
        if node.has(slot):
            node.pin(slot, "is applied to each channel by itself")
    return [_shadow.lined(tuple(node.results[0].shape), 0, node.along(0, 0))]


def _is_pointwise(node: Node, axis: int) -> bool:
    """Whether the kernel sees one place of this axis of space at a time."""
    if axis < 2:
        return False
    stride = node.attribute("strides", ()) or [1] * (len(node.shape(0)) - 2)
    same = node.results[0].shape[axis] == node.shape(0)[axis]
    return bool(node.shape(1)[axis] == 1 and stride[axis - 2] == 1 and same)


def _place_by_place(node: Node) -> list[Shadow]:
    """Channels stand on an axis of space and pass: tokens that are mixed by a convolution of width 1."""
    for slot in (1, 2):
        if node.has(slot):
            node.pin(slot, "mixes other axes than that of the channels")
    source = node.shadow(0)
    return [Shadow(tuple(node.results[0].shape), source.axis, source.labels)]


def _unknown_kernel(node: Node) -> list[Shadow]:
    for slot in node.slots():
        node.pin(slot, "has a kernel that is computed, or channels on an axis of space")
    return node.blanks()


def _bias(node: Node, out: Tensor) -> None:
    if node.has(2):
        node.unify(node.along(2, 0), out)


def _dense(node: Node, transposed: bool) -> Tensor:
    node.unify(node.along(1, 0 if transposed else 1), node.along(0, 1))
    return node.along(1, 1 if transposed else 0)


def _depthwise(node: Node, groups: int, outer: int, transposed: bool) -> Tensor:
    """A group is one input channel and goes with it."""
    channels = node.along(0, 1)
    out = channels.repeat_interleave(outer)
    node.unify(node.along(1, 0), channels if transposed else out)
    if transposed and outer > 1:
        node.book.labels.pin(node.along(1, 1), f"{node.title} has it once for all groups")
    node.count("group", channels)
    return out


def _grouped(node: Node, groups: int, transposed: bool) -> Tensor:
    """Each group loses the channels at the same places."""
    rows = node.along(0, 1).reshape(groups, -1)
    node.unify(rows, rows[:1])
    if transposed:
        node.unify(node.along(1, 0).reshape(groups, -1), rows)
        return node.along(1, 1).repeat(groups)
    node.unify(node.along(1, 1), rows[0])
    out = node.along(1, 0).reshape(groups, -1)
    node.unify(out, out[:1])
    return out.reshape(-1)


def matmul(node: Node) -> list[Shadow]:
    """[..., M, K] @ [..., K, N] -> [..., M, N]."""
    a, b = len(node.shape(0)), len(node.shape(1))
    lead = string.ascii_uppercase[: max(a, b) - 2][::-1]
    one = "k" if a == 1 else lead[len(lead) - (a - 2) :] + "mk"
    other = "k" if b == 1 else lead[len(lead) - (b - 2) :] + "kn"
    out = lead + ("m" if a > 1 else "") + ("n" if b > 1 else "")
    return [contract(node, [one, other], out)]


def gemm(node: Node) -> list[Shadow]:
    """[M, K] @ [K, N] + bias."""
    one = "km" if node.attribute("transA", 0) else "mk"
    other = "nk" if node.attribute("transB", 0) else "kn"
    shadow = contract(node, [one, other], "mn")
    node.follow(2, shadow)
    return [shadow]


def einsum(node: Node) -> list[Shadow]:
    """Any product that is written with letters."""
    equation = node.attribute("equation", "").replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    repeated = any(len(set(term)) < len(term) for term in terms)
    if not arrow or "." in equation or repeated:
        for slot in node.slots():
            node.pin(slot, "is written in a way that is not followed")
        return node.blanks()
    return [contract(node, terms, out)]


def contract(node: Node, terms: Sequence[str], out: str) -> Shadow:
    """Channels along one letter go together. Of the result's letters one is followed, the others are pinned."""
    shape = tuple(node.results[0].shape)
    followed = _followed(node, terms, out)
    found = torch.zeros(0)
    for letter in dict.fromkeys("".join(terms)):
        vectors = _vectors(node, terms, letter)
        for vector in vectors[1:]:
            node.unify(vectors[0], vector)
        if letter == followed:
            found = vectors[0]
        elif letter in out:
            for vector in vectors:
                node.book.labels.pin(
                    vector, f"{node.title} leads it to an axis that is not followed"
                )
    if not followed:
        return _shadow.blank(shape)
    node.choose(out.index(followed))
    return _shadow.lined(shape, out.index(followed), found)


def _followed(node: Node, terms: Sequence[str], out: str) -> str:
    """The letter of the result to follow: of an activation's channels before a weight's, that with the most; '' for none.

    Of two weights the second is the layer's, and the first a table that it is applied to.

    The one that was asked for comes first; where one element is left of it, that stays and none is followed.
    """
    of_activations: dict[str, tuple[int, int]] = {}
    of_weights: dict[str, tuple[int, int]] = {}
    for slot, term in enumerate(terms):
        for axis, letter in enumerate(term):
            size = node.shape(slot)[axis]
            if letter in out and size > 1:
                if node.varying(slot) == axis:
                    of_activations[letter] = (0, int(torch.unique(node.along(slot, axis)).numel()))
                elif node.is_initializer(slot):
                    of_weights[letter] = (slot, size)
    asked = out[node.kept_axis] if node.kept_axis >= 0 else ""
    if asked and node.results[0].shape[node.kept_axis] == 1:
        return ""
    best = of_activations or of_weights
    if asked in best:
        return asked
    return max(best, key=lambda letter: best[letter]) if best else ""


def _vectors(node: Node, terms: Sequence[str], letter: str) -> list[Tensor]:
    return [
        node.along(slot, axis)
        for slot, term in enumerate(terms)
        for axis, known in enumerate(term)
        if known == letter and node.shape(slot)[axis] > 1
    ]


def recurrent(node: Node) -> list[Shadow]:
    """x: [T, N, I] -> [T, directions, N, H], [directions, N, H]; all gates and both directions lose the same units."""
    if node.attribute("layout", 0) or node.varying(0) in (0, 1) or not _has_own_weights(node):
        for slot in node.slots():
            node.pin(slot, "is of a form that is not followed")
        return node.blanks()
    units = node.along(2, 2)
    node.unify(node.along(1, 2), node.along(0, 2))
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[node.kind]
    for slot, count in ((1, gates), (2, gates), (3, 2 * gates), (7, 3)):
        if node.is_initializer(slot):
            node.unify(node.along(slot, 1), units.repeat(count))
    for slot in (5, 6):
        if node.has(slot):
            node.unify(node.along(slot, 2), units)
    if "hidden_size" in node.step.attributes:
        node.count("hidden_size", units)
    return [_shadow.lined(tuple(r.shape), r.dim() - 1, units) for r in node.results]


def _has_own_weights(node: Node) -> bool:
    return all(node.is_initializer(slot) for slot in (1, 2, 3, 7) if node.has(slot))
