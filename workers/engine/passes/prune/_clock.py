"""Times networks in ONNX Runtime beside the network as a step was given it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import numpy as np

from workers.engine import formats
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.measure import latency
from workers.engine.passes.prune._search import Timing

_BUDGET_S = 1.5
_STRETCHES = 5


class Clock:
    """The network as it was, exported, and inputs for it: samples where there are any, else noise."""

    def __init__(self, graph: Graph, ctx: Context, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._ctx, self._before = ctx, ctx.work / "clock-before.onnx"
        self._after = ctx.work / "clock-after.onnx"
        self._feeds = _feeds(graph, ctx, shapes)
        formats.save(graph, self._before)

    def time(self, graph: Graph, asked: float) -> Timing:
        """How many times faster than before a network is; longer where noise leaves open whether it is `asked`."""
        formats.save(graph, self._after)
        ratios = self._stretches()
        if min(ratios) < asked < max(ratios):
            ratios += self._stretches()
        return Timing(statistics.median(ratios), min(ratios), max(ratios))

    def close(self) -> None:
        """Removes the files."""
        for path in (self._before, self._after):
            path.unlink(missing_ok=True)

    def _stretches(self) -> list[float]:
        return latency.speedups(
            self._after,
            self._before,
            self._feeds,
            threads=self._ctx.threads,
            stretches=_STRETCHES,
            budget_s=_BUDGET_S,
        )


def _feeds(
    graph: Graph, ctx: Context, shapes: Mapping[str, tuple[int, ...]]
) -> Mapping[str, np.ndarray]:
    if ctx.train is not None:
        batch = max((shape[0] for shape in shapes.values() if shape), default=1)
        return latency.sample_feeds(ctx.train, batch)
    dtypes = {v.name or "": str(v.dtype.numpy()) for v in graph.inputs if v.dtype is not None}
    return latency.random_feeds(shapes, dtypes, ctx.seed_of("clock"))
