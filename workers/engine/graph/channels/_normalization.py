"""Rules of operators that normalise: parameters go with the channels they belong to."""

from __future__ import annotations

import torch

from workers.engine.graph.channels._book import Node
from workers.engine.graph.channels._shadow import Shadow


def per_channel(node: Node) -> list[Shadow]:
    """Statistics of each channel alone: BatchNormalization, InstanceNormalization. Params are along axis 1."""
    if node.varying(0) == 0:
        node.pin(0, "has channels on the axis of the batch")
    if node.varying(0) > 1 and node.kind != "BatchNormalization":
        node.summarise(node.along(0, node.varying(0)))
    channels = node.along(0, 1)
    for slot in list(node.slots())[1:]:
        node.unify(node.along(slot, 0), channels)
    return node.carried()


def per_group(node: Node) -> list[Shadow]:
    """Each group loses the channels at the same places; groups of one channel go with it."""
    groups = node.attribute("num_groups", 1)
    channels = node.along(0, 1)
    if groups == channels.numel():
        node.count("num_groups", channels)
        return per_channel(node)
    rows = channels.reshape(groups, -1)
    node.unify(rows, rows[:1])
    node.summarise(channels)
    return per_channel(node)


def per_layer(node: Node) -> list[Shadow]:
    """Statistics over the last axes, or over one: those of the channels that are kept (docs/adr/0009)."""
    source = node.shadow(0)
    axis = int(node.attribute("axis", -1)) % len(node.shape(0))
    if source.labels is not None and _is_over(node, source.axis, axis):
        node.summarise(source.labels)
    for slot in list(node.slots())[1:]:
        node.follow(slot, source)
    return node.carried()


def _is_over(node: Node, channels: int, axis: int) -> bool:
    return channels == axis if node.kind == "LpNormalization" else channels >= axis


def over_axis(node: Node) -> list[Shadow]:
    """Each element depends on the others of its axis, removed ones too."""
    axis = int(node.attribute("axis", -1)) % max(len(node.shape(0)), 1)
    if node.varying(0) == axis:
        node.pin(0, "weighs its channels against each other")
        return node.blanks()
    return node.carried()


def over_host_axis(node: Node) -> list[Shadow]:
    """The same, where the axis is the second operand: CumSum, CumProd."""
    axis = int(node.operands[1].reshape(-1)[0]) % len(node.shape(0))
    if node.varying(0) == axis:
        node.pin(0, "sums over the channels before")
        return node.blanks()
    return node.carried()


def over_axes(node: Node) -> list[Shadow]:
    """MeanVarianceNormalization."""
    rank = len(node.shape(0))
    axes = {axis % rank for axis in node.attribute("axes", (0, 2, 3))}
    if node.varying(0) in axes:
        node.pin(0, "weighs its channels against each other")
        return node.blanks()
    return node.carried()


def neighbours(node: Node) -> list[Shadow]:
    """Each channel depends on those beside it: LRN, Trilu, sorting."""
    node.pin(0, "depends on the place of its channels")
    return node.blanks()


def channelwise(node: Node) -> list[Shadow]:
    """Windows over axes of space: pooling, resampling. Channels on axis 0 or 1 pass."""
    source = node.shadow(0)
    for slot in list(node.slots())[1:]:
        if slot not in node.step.operator.host:
            node.pin(slot, "places windows by it")
    if source.labels is None:
        return node.blanks()
    sizes = {r.shape[source.axis] for r in node.results if isinstance(r, torch.Tensor)}
    resized = sizes != {source.shape[source.axis]}
    if resized or (source.axis > 1 and node.kind != "Resize"):
        node.pin(0, "moves a window over its channels")
        return node.blanks()
    if len(node.results) > 1:
        node.pin(0, "answers the places of its elements")
        return node.blanks()
    result = tuple(node.results[0].shape)
    return [Shadow(result, source.axis, source.labels)]
