"""What an initializer is: a weight that training changes, a running statistic, or a constant."""

from __future__ import annotations

from enum import Enum

import numpy as np
import onnx_ir as ir

from workers.engine.graph import tensors
from workers.engine.graph.ops import TABLE, Operator, elementwise, key

MASK_FROM = 1e4
"""Elements of an addend this large are a mask (minus infinity in disguise), not a trained bias."""

_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div"})


class Role(Enum):
    """What training does with an initializer."""

    WEIGHT = "weight"
    STATISTIC = "statistic"
    CONSTANT = "constant"


def role(initializer: ir.Value) -> Role:
    """Found by following the value through operators that only move data to those that compute.

    In elementwise arithmetic a single number (an epsilon, the square root of two), a mask and what
    only computes a shape (the scales of a Resize) are constants; arrays are weights.
    """
    if initializer.dtype not in tensors.FLOATS:
        return Role.CONSTANT
    found = _reached(initializer, initializer)
    return next((known for known in (Role.STATISTIC, Role.WEIGHT) if known in found), Role.CONSTANT)


def _reached(value: ir.Value, initializer: ir.Value) -> set[Role]:
    found: set[Role] = set()
    for node, slot in value.uses():
        operator = TABLE.get(key(node.domain, node.op_type))
        if operator is None:
            continue
        if slot in operator.statistics:
            found.add(Role.STATISTIC)
        elif slot in operator.weights and _is_trained(node, initializer):
            found.add(Role.WEIGHT)
        elif operator.moves_data and slot not in operator.host and slot not in operator.weights:
            found.update(*(_reached(output, initializer) for output in node.outputs))
    return found


def _is_trained(node: ir.Node, initializer: ir.Value) -> bool:
    if node.op_type not in _ELEMENTWISE:
        return True
    tensor = initializer.const_value
    if tensor is None or tensor.size <= 1 or _ends_in_shapes(node):
        return False
    return bool(np.abs(tensor.numpy().astype(np.float32)).max() < MASK_FROM)


def _ends_in_shapes(node: ir.Node) -> bool:
    """Whether everyone who reads the node's results takes them as a shape, a size or a bound."""
    seen, waiting = set(), [node]
    while waiting:
        for value in waiting.pop().outputs:
            if value.is_graph_output():
                return False
            for user, slot in value.uses():
                operator = TABLE.get(key(user.domain, user.op_type))
                if operator is None or (slot not in operator.host and not _is_arithmetic(operator)):
                    return False
                if slot not in operator.host and user not in seen:
                    seen.add(user)
                    waiting.append(user)
    return True


def _is_arithmetic(operator: Operator) -> bool:
    """Whether chains that compute shapes are made of it."""
    return operator.moves_data or operator.compute.__module__ == elementwise.__name__
