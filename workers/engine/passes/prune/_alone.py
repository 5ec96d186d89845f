"""Networks of which one layer alone has lost its channels: they tell where the loss of a step comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import numpy.typing as npt

from workers.engine.graph import Graph, channels, match, shapes
from workers.engine.graph.channels.plan import Plan, Removed

_INPUTS = "not measured alone: what it lost are inputs, which go with the layers before it"


class Trail:
    """Which elements of each weight are left, from round to round."""

    def __init__(self) -> None:
        self._left: dict[tuple[str, int], npt.NDArray[np.int64]] = {}

    def follow(self, plan: Plan, removed: Removed) -> None:
        """One round more; `plan` is that of the network before it."""
        for name, slices in plan.slices(removed).items():
            for axis, kept in slices.items():
                before = self._left.get((name, axis), np.arange(kept.size))
                self._left[name, axis] = before[kept]

    def gone(self, plan: Plan) -> Removed:
        """The classes of which nothing is left; `plan` is that of the network before the first round."""
        gone = np.zeros(plan.classes.count, np.bool_)
        for _, _, touched in plan.touched:
            gone[touched] = True
        for name, axis, touched in plan.touched:
            gone[touched[self._left.get((name, axis), np.arange(touched.size))]] = False
        return gone


def networks(
    graph: Graph, plan: Plan, gone: Removed, input_shapes: shapes.Shapes, touched: Iterable[str]
) -> dict[str, Callable[[], Graph] | str]:
    """For each touched layer the network without the channels that it makes, or why there is none.

    Channels that several layers make go together; they are the first one's.

    Args:
        graph: The network before the first round.
        plan: Its own.
        gone: Classes that went.
        input_shapes: Of one sample.
        touched: Weights that changed.
    """
    parts, joined = _parts(graph, plan, gone)
    found: dict[str, Callable[[], Graph] | str] = {}
    for name in touched:
        if name in parts:
            found[name] = partial(_without, graph, plan, parts[name], input_shapes)
        elif name in joined:
            found[name] = f"not measured alone: its channels go with those of '{joined[name]}'"
        else:
            found[name] = _INPUTS
    return found


def _parts(graph: Graph, plan: Plan, gone: Removed) -> tuple[dict[str, Removed], dict[str, str]]:
    """What went, by the first layer that made it; and all weights that it went out of, but for inputs, with that layer."""
    layers = match.layers(graph)
    outputs = {(layer.weight, layer.out_axis) for layer in layers}
    inputs = {(layer.weight, layer.in_axis) for layer in layers}
    parts: dict[str, Removed] = {}
    joined: dict[str, str] = {}
    for family in plan.families:
        mine = np.zeros_like(gone)
        mine[family.classes] = gone[family.classes]
        if mine.any():
            own = [at for at in family.axes if at not in inputs] or [family.axes[0]]
            first = next((name for name, axis in own if (name, axis) in outputs), own[0][0])
            parts[first] = parts.get(first, np.zeros_like(gone)) | mine
            joined.update(dict.fromkeys((name for name, _ in own), first))
    return parts, joined


def _without(graph: Graph, plan: Plan, removed: Removed, input_shapes: shapes.Shapes) -> Graph:
    found = graph.clone()
    channels.surgery.remove(found, plan, removed, input_shapes, is_checked=False)
    return found
