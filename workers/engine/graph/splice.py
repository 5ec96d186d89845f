"""Puts what one graph computes for a node in the place of that node in another graph of the same network.

    before:  x -> Conv(w) -> y -> Relu -> z
    after:   x -> Q -> DQ -> Conv(DQ(codes)) -> z -> Q -> DQ -> ...
    spliced: x -> Q -> DQ -> Conv(DQ(codes)) -> y -> Relu -> z

Taken is everything that the node's result depends on, back to values that both graphs have by name: codes, scales, what decodes them,
roundings of inputs, and whatever nodes a rewriting put there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from workers.engine.errors import Unsupported
from workers.engine.graph import edit, match
from workers.engine.graph.graph import Graph

Shapes = Mapping[str, tuple[int, ...]]

_SHAPE = "its shape changed"


def splice(
    graph: Graph, source: Graph, names: Collection[str], shapes: Shapes, source_shapes: Shapes
) -> None:
    """Puts in the place of the nodes of these names what `source` computes for them.

    Args:
        graph: Changes; it has the nodes.
        source: The same network, changed.
        names: Nodes; more than one where they share a weight.
        shapes: Of the values of `graph`, by name.
        source_shapes: Of the values of `source`.

    Values that only these nodes read need not be in `source`: a convolution and the normalization behind it may have become something else.

    Raises:
        Unsupported: `source` has nothing of their shape in their place, or only together with another layer.
    """
    nodes = [node for node in graph.nodes if node.name in names]
    frame = _Frame(graph, source, shapes, source_shapes, _downstream(nodes))
    ends = {
        value: frame.end(value)
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or not set(value.consumers()) <= set(nodes)
    }
    region = frame.region(ends.values())
    frame.check_alone(region, names)
    made = frame.copy(region, nodes[0])
    for old, end in ends.items():
        edit.take_place(graph, old, made[end])
    graph.model.graph.sort()
    edit.remove_dead(graph)


@dataclass(frozen=True)
class _Frame:
    """Two graphs of one network, seen from the place where one gets a part of the other."""

    graph: Graph
    source: Graph
    shapes: Shapes
    source_shapes: Shapes
    later: frozenset[ir.Value]
    """Values of `graph` that depend on what is replaced."""

    @cached_property
    def values(self) -> dict[str, ir.Value]:
        """Activations of the graph."""
        made = (value for node in self.graph.nodes for value in node.outputs)
        return {value.name or "": value for value in (*self.graph.inputs, *made)}

    @cached_property
    def constants(self) -> set[ir.Value]:
        """Values of the source that depend on no input."""
        found = set(self.source.initializers.values())
        for node in self.source.nodes:
            if node.inputs and all(value is None or value in found for value in node.inputs):
                found.update(node.outputs)
        return found

    def end(self, value: ir.Value) -> ir.Value:
        """What the source has in the place of a value: what a node of the same name makes, or a value of the same name."""
        maker = value.producer()
        assert maker is not None
        place, shape = maker.outputs.index(value), self.shapes.get(value.name or "")
        by_node = [n.outputs for n in self.source.nodes if n.name == maker.name]
        by_name = [v for n in self.source.nodes for v in n.outputs if v.name == value.name]
        found = [*(outputs[place] for outputs in by_node if place < len(outputs)), *by_name]
        for made in found:
            if self.source_shapes.get(made.name or "") == shape:
                return made
        raise Unsupported(_SHAPE if found else "it was joined with others, or its place went")

    def region(self, ends: Iterable[ir.Value]) -> list[ir.Node]:
        """Nodes of the source that the ends depend on, back to values that the graph has, in their order."""
        found: set[ir.Node] = set()
        todo = [value.producer() for value in ends]
        while todo:
            node = todo.pop()
            if node is not None and node not in found:
                found.add(node)
                todo += [v.producer() for v in node.inputs if v is not None and not self.shared(v)]
        return [node for node in self.source.nodes if node in found]

    def shared(self, value: ir.Value) -> ir.Value | None:
        """The graph's value that stands for one of the source; null where there is none."""
        here = self.values.get(value.name or "")
        if here is None or here in self.later or value in self.constants:
            return None
        if self.shapes.get(here.name or "") != self.source_shapes.get(value.name or ""):
            raise Unsupported(_SHAPE)
        return here

    def check_alone(self, region: Iterable[ir.Node], names: Collection[str]) -> None:
        """Raises Unsupported where the region holds more than what is replaced."""
        others = {layer.name for layer in match.layers(self.graph)} - set(names)
        for node in region:
            if node.name in others:
                raise Unsupported(f"it was joined with '{node.name}'")
            if any(a.type is ir.AttributeType.GRAPH for a in node.attributes.values()):
                raise Unsupported("it is part of a loop or a branch")

    def copy(self, region: Iterable[ir.Node], before: ir.Node) -> dict[ir.Value, ir.Value]:
        """Puts copies of the nodes before another; answers the values they make, by those of the source."""
        made: dict[ir.Value, ir.Value] = {}
        for node in region:
            operands = [None if v is None else self._operand(v, made) for v in node.inputs]
            outputs = [self._value(value) for value in node.outputs]
            made.update(zip(node.outputs, outputs, strict=True))
            name = self.graph.unused_name(node.name or node.op_type)
            attributes = list(node.attributes.values())
            copied = ir.Node(
                node.domain, node.op_type, operands, attributes, outputs=outputs, name=name
            )
            self.graph.model.graph.insert_before(before, copied)
        return made

    def _operand(self, value: ir.Value, made: dict[ir.Value, ir.Value]) -> ir.Value:
        if value not in made:
            here = self.shared(value)
            made[value] = here if here is not None else self._constant(value)
        return made[value]

    def _constant(self, value: ir.Value) -> ir.Value:
        return self.graph.add_weight(value.name or "", self.source.weight(value.name or ""))

    def _value(self, value: ir.Value) -> ir.Value:
        name = self.graph.unused_name(value.name or "value")
        return ir.Value(name=name, type=value.type, shape=value.shape)


def _downstream(nodes: Iterable[ir.Node]) -> frozenset[ir.Value]:
    found: set[ir.Value] = set()
    todo = list(nodes)
    while todo:
        for value in todo.pop().outputs:
            if value not in found:
                found.add(value)
                todo += value.consumers()
    return frozenset(found)
