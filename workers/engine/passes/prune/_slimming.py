"""Sparse training (Liu et al. 2017, arXiv 1708.06519, eq. 1): scales of normalization under an L1 penalty.

loss + strength * sum |gamma|        whose gradient with respect to gamma has strength * sign(gamma) added
"""

from __future__ import annotations

import numpy as np
import torch

from modelpress.spec.prune import PruneChannels
from modelpress.spec.step import Step
from workers.engine import losses, teaching, train
from workers.engine.context import Context
from workers.engine.errors import NothingChanged
from workers.engine.graph import Graph, execute

NORMS = frozenset(
    {
        "BatchNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "LayerNormalization",
        "RMSNormalization",
    }
)
_SMALL = 0.1
"""Scales below this part of the largest are counted in the note."""


def scales(graph: Graph) -> dict[str, list[str]]:
    """The scales of normalization that can be trained, each with the names of the nodes that read it."""
    found: dict[str, list[str]] = {}
    for node in graph.nodes:
        scale = node.inputs[1] if node.op_type in NORMS and len(node.inputs) > 1 else None
        if scale is not None and scale.name is not None and graph.is_parameter(scale.name):
            found.setdefault(scale.name, []).append(node.name or "")
    return found


def train_sparse(graph: Graph, step: PruneChannels, ctx: Context) -> None:
    """Trains all weights under the penalty, where the step asks for it.

    Raises:
        NothingChanged: no normalization has a scale of its own.
        Diverged: training gave NaN or infinity.
    """
    if step.sparse_training is None:
        return
    assert ctx.train is not None, "the recipe was checked: sparse training has labelled data"
    names = _penalized(graph, step)
    module = execute.as_module(graph)
    fitting, strength = losses.classification(ctx.source), step.sparse_training.strength

    def loss(batch: losses.Batch) -> torch.Tensor:
        sums = [module.weights[name].abs().sum() for name in names]
        return fitting(batch) + strength * torch.stack(sums).sum()

    before = _small(graph, names)
    log = train.fit(
        module, ctx.train, step.sparse_training, ctx, loss=loss, label="sparse training"
    )
    execute.write_back(module, graph)
    ctx.note(
        f"sparse training at strength {strength:g}: loss with its penalty {teaching.course(log)}; "
        f"scales below a tenth of the layer's largest: {before:.1%} before, "
        f"{_small(graph, names):.1%} after"
    )


def _penalized(graph: Graph, step: Step) -> list[str]:
    found = scales(graph)
    names = [name for name, readers in found.items() if not step.excludes(name, *readers)]
    if not names:
        raise NothingChanged(
            f"sparse training found none of the model's {len(found)} scales of normalization to train",
            hint="shorten exclude" if found else "leave sparse_training out, with criterion 'l2'",
        )
    return names


def _small(graph: Graph, names: list[str]) -> float:
    """The share of scales that are small beside the largest of their layer."""
    sizes = [np.abs(graph.weight(name).astype(np.float32)) for name in names]
    few = [int((size < _SMALL * size.max()).sum()) for size in sizes]
    return sum(few) / sum(size.size for size in sizes)
