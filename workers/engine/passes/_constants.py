"""Values that are computed anew at each run although they never change, as exporters leave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import torch

from workers.engine.graph import Graph, edit, execute, tensors

MAX_ELEMENTS = 1 << 16
"""Larger results stay computed: storing them would make the file larger."""

_RANDOM = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomUniform"})
_LIKE = frozenset({"CastLike"})
"""Operators whose result depends on the type of their second operand only."""


def fold(graph: Graph, input_shapes: Mapping[str, Sequence[int]]) -> None:
    """Computes once what depends on no input, and stores it.

    Expand(0, Shape(w)) -> Conv(x, w, bias)    becomes    Conv(x, w, zeros)
    """
    names = [v.name or "" for v in _wanted(graph)]
    if not names:
        return
    known = values(graph, input_shapes, names)
    for node in graph.nodes:
        for value in node.outputs:
            found = known.get(value.name or "")
            if isinstance(found, torch.Tensor) and found.numel() <= MAX_ELEMENTS:
                stored = graph.add_weight(f"{value.name}_folded", tensors.to_numpy(found))
                edit.replace_uses(value, stored)
    edit.remove_dead(graph)


def _wanted(graph: Graph) -> list[ir.Value]:
    """Constant values that a node reads which is not constant itself."""
    constant = nodes(graph)
    return [
        value
        for node in constant
        for value in node.outputs
        if not value.is_graph_output() and any(user not in constant for user in value.consumers())
    ]


def nodes(graph: Graph) -> dict[ir.Node, None]:
    """Those whose results depend on no input, in their order."""
    known = set(graph.initializers.values())
    found: dict[ir.Node, None] = {}
    for node in graph.nodes:
        operands = node.inputs[:1] if node.op_type in _LIKE else node.inputs
        if all(v is None or v in known for v in operands) and not _is_special(node):
            found[node] = None
            known.update(node.outputs)
    return found


def _is_special(node: ir.Node) -> bool:
    has_subgraph = any(a.type is ir.AttributeType.GRAPH for a in node.attributes.values())
    return has_subgraph or node.op_type in _RANDOM


def values(
    graph: Graph, input_shapes: Mapping[str, Sequence[int]], names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Values of these names, which depend on no input."""
    module = execute.as_module(graph).eval()
    inputs = [
        torch.zeros(
            tuple(input_shapes[v.name or ""]), dtype=tensors.dtype_of(v.dtype or ir.DataType.FLOAT)
        )
        for v in graph.inputs
    ]
    with torch.no_grad():
        return module.values(inputs, names)
