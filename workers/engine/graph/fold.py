"""Compute once what depends on nothing but constants."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from workers.engine.graph import edit, program, tensors
from workers.engine.graph.graph import Graph
from workers.engine.graph.ops import Call
from workers.engine.graph.ops.constant import HOST_ELEMENTS

_CPU, _META = torch.device("cpu"), torch.device("meta")


def constants(graph: Graph) -> None:
    """Replaces what is computed from small constants by its value, in place.

    Shape of a weight -> Expand of 0 -> bias of a Conv    becomes    bias of zeros

    Trained weights are never read, only their shapes; a single 0 or 1 is none. Results of more than `HOST_ELEMENTS` elements stay computed.
    """
    known = _small_constants(graph)
    for node in graph.nodes:
        result = _result(graph, node, known)
        if result is None or result.numel() > HOST_ELEMENTS:
            continue
        output = node.outputs[0]
        stored = graph.add_weight(f"{output.name}_value", tensors.to_numpy(result))
        edit.replace_uses(output, stored)
        known[stored.name or ""] = result
    edit.remove_dead(graph)


def _small_constants(graph: Graph) -> dict[str, torch.Tensor]:
    found = {}
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.size > HOST_ELEMENTS:
            continue
        if not graph.is_parameter(name) or _is_fill(tensor):
            found[name] = tensors.from_ir(tensor)
    return found


def _is_fill(tensor: ir.TensorProtocol) -> bool:
    """A single 0 or 1, which exporters expand to the bias or scale that a layer does not have."""
    return tensor.size == 1 and float(tensor.numpy().reshape(-1)[0]) in (0.0, 1.0)


def _result(graph: Graph, node: ir.Node, known: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """The value of a node's only output; null where it depends on more than constants."""
    step = program.step(node)
    if len(node.outputs) != 1 or node.outputs[0].is_graph_output() or not _is_plain(step):
        return None
    operands = [_operand(graph, node, slot, known) for slot in range(len(node.inputs))]
    missing = [value is None for value in operands]
    given = [value is not None for value in node.inputs]
    if not operands or any(m and g for m, g in zip(missing, given, strict=True)):
        return None
    small = [x for x in operands if x is not None and x.device == _CPU]
    if not small and step.operator.name != "Shape":
        return None
    result = program.Machine(_CPU).apply(step, operands, Call(_META))
    return result if isinstance(result, torch.Tensor) and result.device == _CPU else None


def _is_plain(step: program.Step) -> bool:
    """No random numbers, no subgraphs, nothing that is big before it is small."""
    return step.operator.name in _FOLDED.split() and not any(
        isinstance(value, program.Program) for value in step.attributes.values()
    )


def _operand(graph: Graph, node: ir.Node, slot: int, known: dict[str, torch.Tensor]) -> Any:
    """What is read: a constant, or a tensor without elements where only its shape or type is asked for."""
    value = node.inputs[slot]
    if value is None:
        return None
    name = value.name or ""
    if name in known:
        return known[name]
    if node.op_type == "Shape" and name in graph.initializers:
        return torch.empty(tuple(_stored(graph, name).shape.numpy()), device=_META)
    if node.op_type == "CastLike" and slot == 1 and value.dtype is not None:
        return torch.empty(0, dtype=tensors.dtype_of(value.dtype))
    return None


def _stored(graph: Graph, name: str) -> ir.TensorProtocol:
    tensor = graph.initializers[name].const_value
    assert tensor is not None
    return tensor


_FOLDED = """
    Shape Size ConstantOfShape Range Expand Cast CastLike Identity Reshape Squeeze Unsqueeze Transpose Concat Gather Slice Neg Add Sub
    Mul Div Mod Min Max Abs Floor Ceil Sqrt Pow Reciprocal Equal Less Greater Not And Or Where ReduceProd ReduceSum
"""
