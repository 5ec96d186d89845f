"""How often channels are active: APoZ, the average percentage of zeros (Hu et al. 2016, arXiv 1607.03250, eq. 1).

    worth = 1 - APoZ        summed over every rectifier that the channel passes

APoZ is of values after a rectifier, which are zero often. Where none follows (GELU, SiLU, tanh, nothing), a channel is worth the mean
absolute value of what later layers read of it. Both are observed on training samples, in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from modelpress.spec.prune import PruneChannels
from workers.engine import data, forward
from workers.engine.context import Context
from workers.engine.graph import Graph, execute, match
from workers.engine.graph.channels.plan import Family, Plan

Scores = npt.NDArray[np.float64]
_BATCH = 32
_RECTIFIERS = frozenset({"Relu", "ThresholdedRelu"})


def worth(graph: Graph, plan: Plan, step: PruneChannels, ctx: Context) -> Scores:
    """The worth of each class; 0 where nothing of it was observed."""
    rectified = _rectified(graph, plan)
    alive = {found for name in rectified for found in _classes(plan, name).tolist()}
    silent = [family for family in plan.families if not alive & set(family.classes.tolist())]
    read = _read(graph, plan, silent) - rectified
    if silent:
        ctx.note(
            f"no rectifier follows {_listed(silent)}: ranked by the mean absolute value that layers read"
        )
    means = _means(
        graph, plan, step, ctx, {**dict.fromkeys(rectified, True), **dict.fromkeys(read, False)}
    )
    total: Scores = np.zeros(plan.classes.count)
    for name, mean in means.items():
        np.add.at(total, _classes(plan, name), mean)
    return total


def _listed(families: list[Family]) -> str:
    """The first weight of each, up to 5."""
    names = ", ".join(f"'{family.axes[0][0]}'" for family in families[:5])
    return names + (f" and {len(families) - 5} more" if len(families) > 5 else "")


def _rectified(graph: Graph, plan: Plan) -> set[str]:
    """Values with channels that come out of a rectifier."""
    names = {node.outputs[0].name or "" for node in graph.nodes if _is_rectifier(graph, node)}
    return {name for name in names if _has_channels(plan, name)}


def _is_rectifier(graph: Graph, node: ir.Node) -> bool:
    if node.op_type in _RECTIFIERS:
        return True
    low = node.inputs[1] if node.op_type == "Clip" and len(node.inputs) > 1 else None
    if low is None or low.name not in graph.initializers:
        return False
    return bool((graph.weight(low.name) == 0).all())


def _read(graph: Graph, plan: Plan, families: list[Family]) -> set[str]:
    """Values that layers multiply, with channels of these families."""
    wanted = {found for family in families for found in family.classes.tolist()}
    values = [layer.node.inputs[0] for layer in match.layers(graph)]
    names = {value.name or "" for value in values if value is not None}
    return {
        name
        for name in names
        if _has_channels(plan, name) and wanted & set(_classes(plan, name).tolist())
    }


def _has_channels(plan: Plan, name: str) -> bool:
    shadow = plan.flow.book.shadows.get(name)
    return shadow is not None and shadow.labels is not None


def _classes(plan: Plan, name: str) -> npt.NDArray[np.int64]:
    """The class of each element of a value along its channels."""
    labels = plan.flow.book.shadows[name].labels
    assert labels is not None, "values without channels were left out"
    found: npt.NDArray[np.int64] = plan.classes.of[labels.numpy()]
    return found


def _means(
    graph: Graph,
    plan: Plan,
    step: PruneChannels,
    ctx: Context,
    counted: Mapping[str, bool],
) -> dict[str, npt.NDArray[np.float64]]:
    """For each value and channel the share of elements that are not zero (True), or their mean absolute value."""
    assert ctx.train is not None, "the recipe was checked: criterion 'activation' has data"
    module = execute.as_module(graph).to(ctx.device).eval()
    total: dict[str, npt.NDArray[np.float64]] = {}
    pieces = list(_pieces(step, ctx, ctx.train))
    for indices in pieces:
        feeds = ctx.train.batch(indices)
        inputs = [torch.from_numpy(feeds[name]).to(ctx.device) for name in ctx.train.input_names]
        with torch.no_grad():
            values = module.values(inputs, list(counted))
        for name, value in values.items():
            size = (value != 0).float() if counted[name] else value.abs().float()
            axis = plan.flow.book.shadows[name].axis
            mean = size.mean(dim=[a for a in range(size.ndim) if a != axis]).double().cpu().numpy()
            total[name] = total.get(name, 0.0) + mean / len(pieces)
    return total


def _pieces(
    step: PruneChannels, ctx: Context, dataset: data.Dataset
) -> Iterator[npt.NDArray[np.int64]]:
    """Seeded training samples in batches of one size, as the model may fix it; a remainder is left out."""
    drawn = ctx.random("activation").permutation(dataset.samples)[: step.samples]
    size = forward.fixed_batch(ctx.source, dataset) or min(_BATCH, len(drawn))
    whole = max(1, len(drawn) // size)
    yield from np.resize(drawn, (whole, size))
