"""Layers that compute in float16: casts around them, as few as can be.

x -> Cast(float16) -> Conv(w, b) -> Cast(float32) -> y          w and b are stored in float16 already

What gives the same from float16 as from float32 (Relu, MaxPool, whatever moves elements) goes between the layer and its cast, so that layers behind
one another pass float16 on.
"""

from __future__ import annotations

import onnx_ir as ir

from workers.engine.graph import Graph, edit
from workers.engine.passes.quantize import _plan

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SAME = frozenset({"Flatten", "MaxPool", "Relu", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_HALF, _SINGLE = int(ir.DataType.FLOAT16), int(ir.DataType.FLOAT)


def compute(graph: Graph) -> int:
    """Lets every layer whose operands but the first are float16 behind a Cast compute in it; answers how many do."""
    layers = [node for node in graph.nodes if _is_stored_in_half(node)]
    for up in [_lower(graph, node) for node in layers]:
        _sink(graph, up)
    for node in graph.nodes:
        _skip(node)
    edit.remove_dead(graph)
    return len(layers)


def _is_stored_in_half(node: ir.Node) -> bool:
    operands = [value for value in node.inputs[1:] if value is not None]
    return (
        node.op_type in _LAYERS and bool(operands) and all(_half(v) is not None for v in operands)
    )


def _half(value: ir.Value) -> ir.Value | None:
    """The float16 constant that a value is the Cast of."""
    cast = value.producer()
    if cast is None or not _is_cast(cast, _SINGLE):
        return None
    stored = cast.inputs[0]
    return stored if stored is not None and stored.dtype == ir.DataType.FLOAT16 else None


def _is_cast(node: ir.Node, to: int) -> bool:
    return node.op_type == "Cast" and node.attributes.get_int("to") == to


def _lower(graph: Graph, node: ir.Node) -> ir.Node:
    """Casts in front of and behind a layer; answers the latter."""
    out, x = node.outputs[0], node.inputs[0]
    assert x is not None
    for index, value in enumerate(node.inputs[1:], start=1):
        node.replace_input_with(index, None if value is None else _half(value))
    down = edit.insert_before(graph, node, "Cast", [x], attributes={"to": _HALF})
    node.replace_input_with(0, down.outputs[0])
    up = edit.insert_after(graph, node, "Cast", [out], attributes={"to": _SINGLE})
    _give_up_name(out, up.outputs[0])
    up.replace_input_with(0, out)
    return up


def _give_up_name(old: ir.Value, new: ir.Value) -> None:
    """Everything that read `old`, the graph's outputs too, reads `new`, which has its name."""
    edit.replace_uses(old, new, outputs=True)
    old.name, new.name = new.name, old.name
    new.shape, new.dtype, old.dtype = old.shape, ir.DataType.FLOAT, ir.DataType.FLOAT16


def _sink(graph: Graph, up: ir.Node) -> None:
    """Moves a Cast to float32 behind what may as well come before it."""
    while (user := _plan.only_use(up.outputs[0])) is not None and user.op_type in _SAME:
        low, out = up.inputs[0], user.outputs[0]
        if len(user.outputs) > 1 or user.inputs[0] is not up.outputs[0]:
            return
        user.replace_input_with(0, low)
        graph.model.graph.remove(up)
        graph.model.graph.insert_after(user, up)
        _give_up_name(out, up.outputs[0])
        up.replace_input_with(0, out)


def _skip(node: ir.Node) -> None:
    """A Cast to float16 of a Cast from it does nothing."""
    value = node.inputs[0] if _is_cast(node, _HALF) else None
    up = value.producer() if value is not None else None
    if up is not None and _is_cast(up, _SINGLE):
        low = up.inputs[0]
        assert low is not None
        if low.dtype == ir.DataType.FLOAT16:
            edit.replace_uses(node.outputs[0], low)
