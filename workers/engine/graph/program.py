"""A graph made ready to run: steps in order, and the machine that runs them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir
import torch

from workers.engine.errors import Unsupported
from workers.engine.graph import element_types, tensors
from workers.engine.graph.ops import TABLE, Call, Operator, key

Values = dict[str, Any]
"""Tensors (or lists of tensors, for sequences) by value name."""

Change = Callable[[torch.Tensor], torch.Tensor]
"""What becomes of a value before anybody reads it."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Step:
    """One node: its operator with attributes as Python values."""

    name: str
    operator: Operator
    inputs: tuple[str, ...]
    """Names; an empty one is an optional operand left out."""
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    types: Mapping[int, ir.DataType] = field(default_factory=dict)
    """Element types of the operands that the operator is typed by."""
    release: tuple[str, ...] = ()
    """Values no later step needs."""


@dataclass(frozen=True)
class Program:
    """The steps of a graph or subgraph. It never changes, so copies of a module share it."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    captures: frozenset[str] = field(default=frozenset())
    """Values of outer graphs that it reads."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self


def prepare(graph: ir.Graph) -> Program:
    """Turn a graph into steps.

    Raises:
        Unsupported: a node has an unknown operator.
    """
    steps = [step(node) for node in graph]
    outputs = tuple(value.name or "" for value in graph.outputs)
    made = {name for step in steps for name in step.outputs}
    made.update(value.name or "" for value in graph.inputs)
    made.update(graph.initializers)
    needed = {name for step in steps for name in _reads(step)}
    return Program(
        inputs=tuple(v.name or "" for v in graph.inputs if v.name not in graph.initializers),
        outputs=outputs,
        steps=tuple(_with_releases(steps, frozenset(outputs))),
        captures=frozenset(needed | set(outputs)) - made,
    )


def step(node: ir.Node) -> Step:
    """A node made ready to run.

    Raises:
        Unsupported: it has an unknown operator.
    """
    name = key(node.domain, node.op_type)
    if name not in TABLE:
        raise Unsupported(f"operator {name} is not supported", layer=node.name or "")
    operator = TABLE[name]
    return Step(
        name=node.name or "",
        operator=operator,
        inputs=tuple("" if value is None else value.name or "" for value in node.inputs),
        outputs=tuple(value.name or "" for value in node.outputs),
        attributes={a: _python(attribute) for a, attribute in node.attributes.items()},
        types=_types(node, operator),
    )


def _types(node: ir.Node, operator: Operator) -> dict[int, ir.DataType]:
    asked = [slot for slot in operator.typed if slot < len(node.inputs)]
    found = {slot: element_types.of(node.inputs[slot]) for slot in asked}
    return {slot: known for slot, known in found.items() if known is not None}


def _python(attribute: ir.Attr) -> Any:
    match attribute.type:
        case ir.AttributeType.TENSOR:
            return tensors.from_ir(attribute.as_tensor())
        case ir.AttributeType.GRAPH:
            return prepare(attribute.as_graph())
        case _:
            return attribute.value


def _reads(step: Step) -> set[str]:
    captured = (a.captures for a in step.attributes.values() if isinstance(a, Program))
    return {name for name in step.inputs if name}.union(*captured)


def _with_releases(steps: Sequence[Step], kept: frozenset[str]) -> list[Step]:
    """Name with each step the values that it is the last to read, or that nobody reads."""
    seen, released = set(kept), []
    for step in reversed(steps):
        done = (_reads(step) | {name for name in step.outputs if name}) - seen
        seen |= done
        released.append(replace(step, release=tuple(sorted(done))))
    return released[::-1]


class Machine:
    """Runs programs. Operands that only describe shapes stay on the host, whatever the device."""

    def __init__(
        self,
        device: torch.device,
        *,
        training: bool = False,
        twins: Mapping[str, torch.Tensor] | None = None,
        keep: Collection[str] = (),
        through: Mapping[str, Change] | None = None,
    ) -> None:
        self.device, self.training = device, training
        self.twins = twins or {}
        self.keep = frozenset(keep)
        self.through = through or {}
        self.kept: Values = {}

    def run(self, program: Program, values: Values) -> list[Any]:
        """Run all steps over the values, which are consumed, and answer the program's outputs.

        An exception gets a note that names the node.
        """
        for step in program.steps:
            try:
                results = self._results(step, values)
            except Exception as error:
                error.add_note(f"in {step.operator.name} '{step.name}'")
                raise
            values.update(zip(step.outputs, results, strict=False))
            for name in self.through.keys() & set(step.outputs):
                values[name] = self.through[name](values[name])
            self.kept.update({name: values[name] for name in step.outputs if name in self.keep})
            for name in step.release:
                values.pop(name, None)
        return [values[name] for name in program.outputs]

    def apply(self, step: Step, operands: list[Any], call: Call) -> Any:
        """Run one operator; answers its result, or a tuple of them."""
        if step.operator.takes_call:
            return step.operator.compute(call, *operands, **step.attributes)
        return step.operator.compute(*operands, **step.attributes)

    def _results(self, step: Step, values: Values) -> tuple[Any, ...]:
        operands = [values[name] if name else None for name in step.inputs]
        operands = self._align(step, operands)
        subgraph = self._subgraph(values)
        call = Call(self.device, self.training, len(step.outputs), subgraph, step.types)
        results = self.apply(step, operands, call)
        return results if isinstance(results, tuple) else (results,)

    def _subgraph(self, values: Values) -> Callable[[Program, Sequence[Any]], list[Any]]:
        def run(program: Program, feeds: Sequence[Any]) -> list[Any]:
            scope = {**values, **dict(zip(program.inputs, feeds, strict=True))}
            return self.run(program, scope)

        return run

    def _align(self, step: Step, operands: list[Any]) -> list[Any]:
        """Bring shape-like operands to the host, and the others to one device."""
        if self.device == _CPU:
            return operands
        host, unread = step.operator.host, step.operator.unread
        away = runs_away(step, operands)
        aligned = []
        for slot, (name, operand) in enumerate(zip(step.inputs, operands, strict=True)):
            if not isinstance(operand, torch.Tensor) or slot in unread:
                aligned.append(operand)
            elif slot in host:
                aligned.append(_to_host(operand))
            elif away and not is_away(operand):
                aligned.append(self.twins[name] if name in self.twins else operand.to(self.device))
            else:
                aligned.append(operand)
        return aligned


def runs_away(step: Step, operands: Sequence[Any]) -> bool:
    """Whether an operand that is computed with is on a device other than the host."""
    aside = step.operator.host | step.operator.unread
    return any(is_away(x) for slot, x in enumerate(operands) if slot not in aside)


def is_away(operand: Any) -> bool:
    """Whether it is a tensor on a device other than the host."""
    return isinstance(operand, torch.Tensor) and operand.device.type != "cpu"


def _to_host(operand: torch.Tensor) -> torch.Tensor:
    if operand.device.type == "meta":
        raise Unsupported("a shape depends on the data")
    return operand.cpu()
