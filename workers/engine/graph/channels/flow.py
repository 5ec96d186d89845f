"""Run a network on labels instead of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from workers.engine.graph import program, shapes
from workers.engine.graph.channels import _movement, _shadow
from workers.engine.graph.channels._book import Book, Node
from workers.engine.graph.channels._rules import RULES
from workers.engine.graph.ops import Call


class Flow(shapes.Ruler):
    """A machine that finds shapes, and beside each value its shadow."""

    def __init__(self, values: program.Values, book: Book) -> None:
        super().__init__(values)
        self.book = book
        self.host: dict[str, torch.Tensor] = {}
        """Values that describe shapes, by name."""
        self.reads: dict[str, list[Any]] = {}
        """Operands by node name, those of space and time without elements."""
        self.steps: list[program.Step] = []
        """Nodes in their order, without those of subgraphs."""
        self._depth = 0

    def apply(self, step: program.Step, operands: list[Any], call: Call) -> Any:
        """Find the results, then their shadows. What runs inside a node is part of that node."""
        self._depth += 1
        try:
            results = super().apply(step, operands, call)
        finally:
            self._depth -= 1
        if self._depth == 0:
            listed = results if isinstance(results, tuple) else (results,)
            self._trace(step, operands, listed)
        return results

    def _trace(self, step: program.Step, operands: list[Any], results: Sequence[Any]) -> None:
        self.reads[step.name] = operands
        self.steps.append(step)
        named = [r for r, name in zip(results, step.outputs, strict=False) if name]
        names = [name for name, _ in zip(step.outputs, results, strict=False) if name]
        for name, result in zip(names, named, strict=True):
            if isinstance(result, torch.Tensor) and not program.is_away(result):
                self.host[name] = result
        node = Node(self.book, step, operands, named)
        found = RULES.get(step.operator.name, _movement.unknown)(node)
        self.book.shadows.update(zip(names, found, strict=True))
        self._pin_captures(step, node)

    def _pin_captures(self, step: program.Step, node: Node) -> None:
        """What a subgraph reads from outside stays whole."""
        for attribute in step.attributes.values():
            if isinstance(attribute, program.Program):
                for name in attribute.captures:
                    pin_value(self.book, name, f"it is read inside {node.title}")


def pin_value(book: Book, name: str, reason: str) -> None:
    """No channel of a value or initializer may go."""
    initializer = book.graph.model.graph.initializers.get(name)
    if initializer is not None:
        for axis in range(len(initializer.shape or ())):
            book.labels.pin(book.axis_labels(name, axis), reason)
        return
    found = book.shadows.get(name, _shadow.blank(())).labels
    if found is not None:
        book.labels.pin(found, reason)


def trace(book: Book, input_shapes: shapes.Shapes) -> Flow:
    """Follows every channel through the network of an empty book, and fills the book. Outputs keep theirs.

    Raises:
        BadModel: shapes do not fit each other, or depend on the data.
    """
    flow = shapes.run(book.graph, input_shapes, lambda values: Flow(values, book))
    for value in book.graph.outputs:
        pin_value(flow.book, value.name or "", f"it is output '{value.name}' of the network")
    return flow
