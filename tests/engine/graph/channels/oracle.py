"""What a network without some channels must answer, found with the whole network.

`zeroed` sets the weights of the channels to zero and runs the network as it is. `absent` also leaves them out of every
mean, variance, norm and maximum: the two differ only where a statistic is over channels (docs/adr/0009).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from workers.engine.graph import Graph, execute, program, tensors
from workers.engine.graph.channels._shadow import Shadow
from workers.engine.graph.channels.plan import Plan, Removed
from workers.engine.graph.ops import Call

Arrays = dict[str, np.ndarray]

_REDUCTIONS = {
    "ReduceMean": np.ma.mean,
    "ReduceSum": np.ma.sum,
    "ReduceMax": np.ma.max,
    "ReduceMin": np.ma.min,
    "ReduceProd": np.ma.prod,
    "ReduceSumSquare": lambda x, **over: np.ma.sum(x * x, **over),
    "ReduceL2": lambda x, **over: np.ma.sqrt(np.ma.sum(x * x, **over)),
    "ReduceL1": lambda x, **over: np.ma.sum(abs(x), **over),
}


def zeroed(graph: Graph, plan: Plan, removed: Removed, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """Outputs of the network whose removed channels have weights of zero."""
    return execute.run(_with_zeros(graph, plan, removed), feeds)


def absent(graph: Graph, plan: Plan, removed: Removed, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """Outputs of the network as if the removed channels had never been."""
    graph = _with_zeros(graph, plan, removed)
    values: program.Values = {
        name: tensors.from_ir(v.const_value) for name, v in graph.initializers.items()
    }
    values |= {name: torch.from_numpy(array) for name, array in feeds.items()}
    outputs = _Absent(plan, removed).run(program.prepare(graph.model.graph), values)
    names = [value.name for value in graph.outputs]
    return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}


def _with_zeros(graph: Graph, plan: Plan, removed: Removed) -> Graph:
    graph = graph.clone()
    for name, axis, touched in plan.touched:
        kept = ~removed[touched]
        if not kept.all():
            weight = graph.weight(name)
            shape = [-1 if a == axis else 1 for a in range(weight.ndim)]
            graph.set_weight(name, (weight * kept.reshape(shape)).astype(weight.dtype))
    return graph


class _Absent(program.Machine):
    """Sets removed channels of every value to zero, and masks them where they are summed up."""

    def __init__(self, plan: Plan, removed: Removed) -> None:
        super().__init__(torch.device("cpu"))
        self.plan, self.removed = plan, removed

    def apply(self, step: program.Step, operands: list[Any], call: Call) -> Any:
        results = self._results_of(step, operands, call)
        listed = results if isinstance(results, tuple) else (results,)
        masked = tuple(self._masked(n, r) for n, r in zip(step.outputs, listed, strict=False))
        return masked if isinstance(results, tuple) else masked[0]

    def _results_of(self, step: program.Step, operands: list[Any], call: Call) -> Any:
        gone = self._gone(step.inputs[0], operands[0]) if step.inputs else None
        if gone is None:
            return super().apply(step, operands, call)
        x = np.ma.masked_array(operands[0].double().numpy(), gone.numpy())
        if step.operator.name in _REDUCTIONS:
            return _reduced(step, x, operands)
        if step.operator.name in ("LayerNormalization", "RMSNormalization"):
            return _layer_normed(step, x, operands)
        if step.operator.name == "GroupNormalization":
            return _group_normed(x, step.attributes["num_groups"], step, operands)
        if step.operator.name == "InstanceNormalization":
            return _group_normed(x, x.shape[1], step, operands)
        return super().apply(step, operands, call)

    def _gone(self, name: str, value: Any) -> torch.Tensor | None:
        """Which elements of a value are of removed channels; null where none is.

        An axis may hold the channels of all samples, one after another.
        """
        masks = [
            self._gone_by(shadow, value)
            for book in self.plan.books
            if (shadow := book.shadows.get(name)) is not None and shadow.labels is not None
        ]
        gone = np.logical_or.reduce([mask.numpy() for mask in masks]) if masks else np.False_
        return torch.from_numpy(gone) if gone.any() else None

    def _gone_by(self, shadow: Shadow, value: torch.Tensor) -> torch.Tensor:
        kept = self.plan.kept(shadow.labels, self.removed)
        shape = [-1 if axis == shadow.axis else 1 for axis in range(value.dim())]
        samples = value.shape[shadow.axis] // kept.size
        gone = torch.from_numpy(np.tile(~kept, samples))
        return gone.reshape(shape).expand(value.shape)

    def _masked(self, name: str, value: Any) -> Any:
        gone = self._gone(name, value)
        return value if gone is None else value.masked_fill(gone, 0)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ma.filled(array, 0).astype(np.float32))


def _reduced(step: program.Step, x: np.ma.MaskedArray, operands: list[Any]) -> torch.Tensor:
    axes = step.attributes.get("axes") or (tensors.ints(operands[1]) if len(operands) > 1 else None)
    keep = bool(step.attributes.get("keepdims", 1))
    over = None if axes is None else tuple(axes)
    return _tensor(np.ma.asarray(_REDUCTIONS[step.operator.name](x, axis=over, keepdims=keep)))


def _layer_normed(step: program.Step, x: np.ma.MaskedArray, operands: list[Any]) -> torch.Tensor:
    axes = tuple(range(step.attributes.get("axis", -1) % x.ndim, x.ndim))
    if step.operator.name == "LayerNormalization":
        x = x - x.mean(axis=axes, keepdims=True)
    variance = (x * x).mean(axis=axes, keepdims=True)
    y = x / np.ma.sqrt(variance + step.attributes.get("epsilon", 1e-5)) * operands[1].numpy()
    return _tensor(y + operands[2].numpy() if len(operands) > 2 else y)


def _group_normed(
    x: np.ma.MaskedArray, groups: int, step: program.Step, operands: list[Any]
) -> torch.Tensor:
    rows = x.reshape(x.shape[0], groups, -1)
    rows = rows - rows.mean(axis=2, keepdims=True)
    variance = (rows * rows).mean(axis=2, keepdims=True)
    y = (rows / np.ma.sqrt(variance + step.attributes.get("epsilon", 1e-5))).reshape(x.shape)
    scale, bias = (o.numpy().reshape(-1, *[1] * (x.ndim - 2)) for o in operands[1:3])
    return _tensor(y * scale + bias)
