"""Blocks of a network, one after another: stretches between values that everything passes through.

    x -> [Conv -> BatchNormalization -> Relu -> Conv -> Add(x) -> Relu] -> y        a block of one shape

A block begins before a layer with weights, has all paths around it, and ends before the next one does. Where a block's input and output
have one shape the network still fits together without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from workers.engine.graph import Graph, edit, match

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """What is between two values."""

    start: ir.Value
    end: ir.Value
    layers: tuple[str, ...]  # names of the nodes with weights


def find(graph: Graph) -> list[Block]:
    """All blocks, in order; none where the network has no value that everything passes through."""
    with_weights = {layer.node for layer in match.layers(graph)}
    blocks: list[Block] = []
    for start, end, nodes in _stretches(graph):
        layers = tuple(node.name or "" for node in nodes if node in with_weights)
        if layers:
            blocks.append(Block(start, end, layers))
        elif blocks and blocks[-1].end is start:
            blocks[-1] = Block(blocks[-1].start, end, blocks[-1].layers)
    return blocks


def places(graph: Graph) -> list[ir.Value]:
    """Values that everything passes through, in order, between the first layer with weights and the last: what is behind that is scores."""
    with_weights = {layer.node for layer in match.layers(graph)}
    found: list[ir.Value] = []
    behind: list[ir.Value] = []
    for start, end, nodes in _stretches(graph):
        if not found and not behind and start.producer() is not None:
            behind.append(start)  # where several inputs meet
        if not with_weights.isdisjoint(nodes):
            found, behind = found + behind, []
        behind.append(end)
    return found


def removable(graph: Graph, shapes: Mapping[str, Shape]) -> list[Block]:
    """Blocks whose input and output have one shape; never one that ends in an output of the network."""
    return [
        block
        for block in find(graph)
        if not block.end.is_graph_output()
        and shapes.get(block.start.name or "") == shapes.get(block.end.name or "", ())
    ]


def remove(graph: Graph, blocks: list[Block]) -> None:
    """Takes blocks out: what read their output reads their input."""
    for block in reversed(blocks):
        edit.replace_uses(block.end, block.start)
    edit.remove_dead(graph)


def _stretches(graph: Graph) -> Iterator[tuple[ir.Value, ir.Value, list[ir.Node]]]:
    """Nodes between neighbouring values of which each is all that is alive at its time."""
    last = _last_reads(graph)
    alive: set[ir.Value] = set(graph.inputs)
    start: ir.Value | None = None
    between: list[ir.Node] = []
    for place, node in enumerate(graph.nodes):
        if start is None and len(alive) == 1:
            (start,) = alive
        between.append(node)
        if any(value in alive for value in node.inputs):
            alive.update(value for value in node.outputs if value in last)
        alive = {value for value in alive if last.get(value, -1) > place}
        if start is not None and len(alive) == 1:
            (end,) = alive
            if end is not start:
                yield start, end, between
                start, between = end, []


def _last_reads(graph: Graph) -> dict[ir.Value, int]:
    """The place of the last node that reads a value, in its body too; past all nodes for outputs."""
    last: dict[ir.Value, int] = {}
    for place, node in enumerate(graph.nodes):
        for inside in (node, *_inside(node)):
            last.update({value: place for value in inside.inputs if value is not None})
    last.update({value: len(graph.nodes) for value in graph.outputs})
    return last


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            yield from ir.traversal.RecursiveGraphIterator(attribute.as_graph())
