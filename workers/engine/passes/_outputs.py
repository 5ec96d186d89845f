"""What a network answers to some training samples, and how far from it others are.

error = sum ||y^ - y||^2 / sum ||y||^2        over all outputs of floats with one row for each sample
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from workers.engine import data
from workers.engine.context import Context
from workers.engine.graph import Graph, execute
from workers.engine.passes import _moments

Outputs = Mapping[str, npt.NDArray[np.float32]]
"""By name, [samples, ...]."""


class Network:
    """The network over the samples."""

    def __init__(self, graph: Graph, samples: data.Dataset, ctx: Context) -> None:
        self._graph, self.samples, self._ctx = graph, samples, ctx
        self._module = execute.as_module(graph).to(ctx.device).eval()

    def outputs(self, weights: Mapping[str, npt.NDArray[np.float32]]) -> Outputs:
        """Its answers with these weights in the place of its own."""
        instead = {n: torch.from_numpy(w).to(self._ctx.device) for n, w in weights.items()}
        names = [value.name or "" for value in self._graph.outputs]
        rows: dict[str, list[npt.NDArray[np.float32]]] = {}
        for indices, inputs in _moments.feeds(self._graph, self.samples, self._ctx):
            with torch.no_grad():
                answers = self._module.run_with(instead, inputs)
            new = len(np.unique(indices))
            for name, answer in zip(names, answers, strict=True):
                if answer.is_floating_point() and answer.shape[:1] == indices.shape:
                    rows.setdefault(name, []).append(answer[:new].float().cpu().numpy())
        return {name: np.concatenate(parts) for name, parts in rows.items()}


def error(found: Outputs, wanted: Outputs) -> float:
    """Squared norm of the difference over that of what was wanted."""
    moved = sum(_squares(found[name] - y) for name, y in wanted.items())
    return moved / max(sum(map(_squares, wanted.values())), 1e-30)


def _squares(values: npt.NDArray[np.float32]) -> float:
    return float(np.square(values.astype(np.float64)).sum())
