"""Rules of values that are one number all over: states of recurrent layers, and scales and biases that a layer does not have."""

from __future__ import annotations

import math

import onnx_ir as ir

from workers.engine.graph.channels import _movement, _shadow
from workers.engine.graph.channels._book import Node
from workers.engine.graph.channels._shadow import Shadow

_RECURRENT = frozenset(("RNN", "GRU", "LSTM"))
_STATES = (5, 6)
_PARTS = frozenset(("Slice", "Split", "Gather", "Squeeze", "Unsqueeze", "Identity"))


def expand(node: Node) -> list[Shadow]:
    """[1, 1, 1] -> [directions, N, H], or one number -> [C]."""
    if node.shadow(0).labels is None and math.prod(node.shape(0)) == 1:
        return filled(node)
    return _movement.movement(node)


def filled(node: Node) -> list[Shadow]:
    """ConstantOfShape. A row has channels, what is read as states alone has them along its last axis; anything else has none."""
    shape = tuple(node.results[0].shape)
    if len(shape) == 1 and shape[0] > 1:
        return [_shadow.lined(shape, 0, node.book.labels.fresh(shape[0]))]
    if len(shape) != 3 or shape[-1] <= 1 or not _are_states(_output(node)):
        return node.blanks()
    return [_shadow.lined(shape, 2, node.book.labels.fresh(shape[-1]))]


def _output(node: Node) -> ir.Value:
    made = next(n for n in node.book.graph.nodes if n.name == node.step.name)
    return made.outputs[0]


def _are_states(value: ir.Value) -> bool:
    """Whether all that reads a value, or a part of it, is a recurrent layer that begins with it."""
    uses = list(value.uses())
    if not uses or value.is_graph_output():
        return False
    return all(_is_state(reader, operand) for reader, operand in uses)


def _is_state(reader: ir.Node, operand: int) -> bool:
    if reader.op_type in _RECURRENT:
        return operand in _STATES
    is_part = reader.op_type in _PARTS and operand == 0
    return is_part and all(_are_states(part) for part in reader.outputs)
