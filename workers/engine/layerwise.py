"""Training of inner values: those of a student are to be those of its teacher."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import Tensor, nn

from modelpress.spec.step import FineTune
from workers.engine import teachers, teaching, train
from workers.engine.context import Context
from workers.engine.graph import Graph, execute
from workers.engine.losses import Batch
from workers.engine.train import TrainLog

Pairs = Sequence[tuple[str, str]]
"""Names of values of the student and of the teacher that are to agree."""


class Probed(nn.Module):
    """A network that answers values of these names after its outputs, or instead of them."""

    def __init__(self, graph: Graph, names: Sequence[str], *, outputs: bool) -> None:
        super().__init__()
        self.network = execute.as_module(graph)
        own = [value.name or "" for value in graph.outputs] if outputs else []
        self.names = (*own, *names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The values, in order."""
        found = self.network.values(inputs, self.names)
        return tuple(found[name] for name in self.names)


def fit(
    graph: Graph,
    teacher: Graph,
    pairs: Pairs,
    fine_tune: FineTune,
    ctx: Context,
    *,
    train: Collection[str],
    label: str = "layerwise",
) -> TrainLog:
    """Fits inner values of a graph to those of a teacher by mean squared error, over the teacher's variance.

    pairs: (name in the graph, name in the teacher), of values of the same shape. Only the weights named by `train` change; the
    statistics of normalization follow their data as in any training. Needs no labels.

    Raises:
        Diverged: as `train.fit`.
    """
    student = Probed(graph, [own for own, _ in pairs], outputs=False)
    for name, weight in student.network.weights.items():
        weight.requires_grad_(name in train)
    beside = Probed(teacher, [theirs for _, theirs in pairs], outputs=False).requires_grad_(False)
    log = _agree(teaching.Taught(student, [beside], None), [graph, teacher], fine_tune, ctx, label)
    execute.write_back(student.network, graph)
    return log


def _agree(
    taught: teaching.Taught, graphs: Sequence[Graph], fine_tune: FineTune, ctx: Context, label: str
) -> TrainLog:
    assert ctx.train is not None, "the recipe was checked: training has data"
    fixed = teachers.fixed(graphs, ctx.train)
    around = replace(ctx, source=fixed or graphs[0])

    def loss(batch: Batch) -> Tensor:
        half = len(batch.outputs) // 2
        return teaching.difference(batch.outputs[:half], batch.outputs[half:])

    return train.fit(taught, ctx.train, fine_tune, around, loss=loss, label=label)
