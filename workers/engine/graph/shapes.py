"""Shapes and costs, found by running the operators themselves on torch's meta device."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import onnx_ir as ir
import torch

from workers.engine.errors import BadModel, EngineError, Unsupported
from workers.engine.graph import program, tensors
from workers.engine.graph.graph import Graph
from workers.engine.graph.ops import Call
from workers.engine.graph.ops.constant import HOST_ELEMENTS

Shapes = Mapping[str, Sequence[int]]

AnyRuler = TypeVar("AnyRuler", bound="Ruler")

_META = torch.device("meta")


@dataclass(frozen=True)
class Facts:
    """What one run without data tells."""

    shapes: dict[str, tuple[int, ...]]
    """Of every value that is a tensor."""
    macs: dict[str, int]
    """Multiply-accumulates by node name, where there are any."""
    peak_bytes: int
    """Most memory that activations need at one time, each freed after its last use."""


def example_shapes(
    graph: Graph, batch: int = 1, given: Shapes | None = None
) -> dict[str, tuple[int, ...]]:
    """Concrete input shapes: the first axis is the batch where it is symbolic, the rest comes from the model.

    Args:
        graph: The graph whose inputs are asked for.
        batch: Size of a symbolic first axis, and of every axis of the same name.
        given: Shapes by input name (with a first axis that is ignored), where the model leaves
            other axes open; those of a dataset.

    Raises:
        Unsupported: an axis beyond the first is open and not given.
    """
    batches = {_axis_name(v.shape[0]) for v in graph.inputs if v.shape} - {None}
    return {
        value.name or "": _concrete(value, batch, batches, (given or {}).get(value.name or ""))
        for value in graph.inputs
    }


def _axis_name(dim: int | ir.SymbolicDim) -> str | None:
    return None if isinstance(dim, int) else dim.value


def _concrete(
    value: ir.Value, batch: int, batches: set[str | None], given: Sequence[int] | None
) -> tuple[int, ...]:
    if value.shape is None:
        if given is None:
            raise Unsupported(
                f"input '{value.name}' has no shape",
                layer=value.name or "",
                hint="export the model with input shapes, or add a dataset",
            )
        return (batch, *given[1:])
    sizes: list[int] = []
    for axis, dim in enumerate(value.shape):
        if isinstance(dim, int):
            sizes.append(dim)
        elif axis == 0 or _axis_name(dim) in batches:
            sizes.append(batch)
        elif given is not None and axis < len(given):
            sizes.append(int(given[axis]))
        else:
            raise Unsupported(
                f"axis {axis} ('{dim}') of input '{value.name}' has no fixed size",
                layer=value.name or "",
                hint="export the model with fixed sizes beyond the batch, or add a dataset",
            )
    return tuple(sizes)


def infer(graph: Graph, input_shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The shape of every value for these input shapes.

    Raises:
        BadModel: shapes do not fit each other, or depend on the data.
    """
    return measure(graph, input_shapes).shapes


def macs(graph: Graph, input_shapes: Shapes) -> dict[str, int]:
    """Multiply-accumulates by node name for these input shapes; nodes without any are left out.

    Raises:
        BadModel: shapes do not fit each other, or depend on the data.
    """
    return measure(graph, input_shapes).macs


def macs_by_operator(graph: Graph, input_shapes: Shapes) -> dict[str, int]:
    """The same, summed by operator type."""
    kinds = {node.name: node.op_type for node in graph.nodes}
    total: Counter[str] = Counter()
    for name, count in macs(graph, input_shapes).items():
        total[kinds.get(name, "")] += count
    return dict(total)


def measure(graph: Graph, input_shapes: Shapes) -> Facts:
    """Shapes, costs and memory in one run.

    Raises:
        BadModel: shapes do not fit each other, or depend on the data.
    """
    machine = run(graph, input_shapes, Ruler)
    return Facts(machine.shapes, machine.macs, machine.peak_bytes)


def run(
    graph: Graph, input_shapes: Shapes, ruler: Callable[[program.Values], AnyRuler]
) -> AnyRuler:
    """One run without data on a machine made by `ruler`, which is answered.

    Raises:
        BadModel: shapes do not fit each other, or depend on the data.
    """
    try:
        values = _stand_ins(graph, input_shapes)
        machine = ruler(values)
        machine.run(program.prepare(graph.model.graph), values)
    except EngineError:
        raise
    except (NotImplementedError, RuntimeError) as error:
        if not _depends_on_data(error):
            raise _misfit(error) from error
        where = _where(error)
        raise Unsupported(f"a shape depends on the data {where}: {error}", layer=where) from error
    except (ValueError, TypeError, IndexError, KeyError, ZeroDivisionError) as error:
        raise _misfit(error) from error
    return machine


def _misfit(error: Exception) -> BadModel:
    where = _where(error)
    return BadModel(f"the model does not fit together {where}: {error}", layer=where)


def _where(error: Exception) -> str:
    return " ".join(getattr(error, "__notes__", [])[:1])


def _stand_ins(graph: Graph, input_shapes: Shapes) -> program.Values:
    """A tensor without elements for each input and large initializer, small ones as they are."""
    values: program.Values = {}
    for value in graph.inputs:
        shape = tuple(input_shapes[value.name or ""])
        dtype = tensors.dtype_of(value.dtype or ir.DataType.FLOAT)
        values[value.name or ""] = torch.empty(shape, dtype=dtype, device=_META)
    for name, initializer in graph.initializers.items():
        values[name] = _stand_in(initializer)
    return values


def _stand_in(initializer: ir.Value) -> torch.Tensor:
    tensor = initializer.const_value
    assert tensor is not None
    if tensor.size <= HOST_ELEMENTS:
        return tensors.from_ir(tensor)
    shape = tuple(tensor.shape.numpy())
    return torch.empty(shape, dtype=tensors.dtype_of(tensor.dtype), device=_META)


class Ruler(program.Machine):
    """A machine that computes nothing but small host values, and writes down what it sees."""

    def __init__(self, values: program.Values) -> None:
        super().__init__(_META)
        self.shapes = {name: tuple(value.shape) for name, value in values.items()}
        self.macs: dict[str, int] = {}
        self.peak_bytes = 0
        self._alive: dict[str, int] = {}

    def apply(self, step: program.Step, operands: list[Any], call: Call) -> Any:
        """Find the result's size before any host value of that size is made."""
        results = self._small_result(step, operands, call)
        listed = results if isinstance(results, tuple) else (results,)
        self._note(step, operands, listed)
        return results

    def _small_result(self, step: program.Step, operands: list[Any], call: Call) -> Any:
        host = step.operator.host
        shadows = [x if slot in host else _shadow(x) for slot, x in enumerate(operands)]
        if program.runs_away(step, operands):
            return super().apply(step, shadows, call)
        try:
            results = super().apply(step, shadows, call)
        except (NotImplementedError, RuntimeError) as error:
            if not _depends_on_data(error):
                raise
            return super().apply(step, operands, call)
        listed = results if isinstance(results, tuple) else (results,)
        if sum(_elements(result) for result in listed) > HOST_ELEMENTS:
            return results
        return super().apply(step, operands, call)

    def _note(self, step: program.Step, operands: list[Any], results: tuple[Any, ...]) -> None:
        for name, result in zip(step.outputs, results, strict=False):
            if isinstance(result, torch.Tensor):
                self.shapes[name] = tuple(result.shape)
                self._alive[name] = math.prod(result.shape) * result.element_size()
        self.peak_bytes = max(self.peak_bytes, sum(self._alive.values()))
        for name in step.release:
            self._alive.pop(name, None)
        if step.operator.macs is not None:
            count = step.operator.macs(operands, results)
            self.macs[step.name] = self.macs.get(step.name, 0) + count


def _depends_on_data(error: Exception) -> bool:
    """Whether torch says that it cannot go on without elements."""
    return isinstance(error, NotImplementedError) or "meta" in str(error)


def _shadow(operand: Any) -> Any:
    return operand.to(_META) if isinstance(operand, torch.Tensor) else operand


def _elements(result: Any) -> int:
    if isinstance(result, list):
        return sum(_elements(element) for element in result)
    return result.numel() if isinstance(result, torch.Tensor) else 0
