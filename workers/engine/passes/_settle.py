"""Weights that the graph makes of other weights at each run, computed once so that they can be pruned."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from workers.engine.errors import Unsupported
from workers.engine.graph import Graph, edit, fold, shapes, tensors
from workers.engine.passes import _constants

_RECURRENT = ("RNN", "GRU", "LSTM")
_WHOLE = {"start": 0, "end": sys.maxsize}
"""Attributes of Shape, and what they are where they are not given."""

_CUTS = frozenset({"Slice", "Split"})
_WEIGHTS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), (1,)),
    **dict.fromkeys(_RECURRENT, (1, 2, 3)),
}
"""Operands that are weights, by operator."""


def weights(graph: Graph, input_shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Computes once the weights of layers that are made of other weights at each run, as standardized filters are.

    w -> (w - mean) / deviation -> Conv                      becomes    w' -> Conv
    w -> gates cut apart, joined in another order -> LSTM    becomes    w' -> LSTM

    What is larger than the floats that it is made of, such as a product of two factors or a decoded table, stays computed, and so does what
    is made of a weight that is tied: read elsewhere too, otherwise than cut in parts. Training after this changes w' itself.

    Returns:
        The layers' names.
    """
    if any(_has_cut_gates(node) for node in graph.nodes):
        _fix_sizes(graph)
    made = _constants.nodes(graph)
    layers = {n: w for n in graph.nodes if n not in made and (w := _made_weights(n, made))}
    made_of = {value.name or "": value for read in layers.values() for value in read}
    found = _constants.values(graph, input_shapes, sorted(made_of)) if made_of else {}
    settled = {v for n, v in made_of.items() if _is_own(v, found[n].numel(), made)}
    for value in sorted(settled, key=lambda value: value.name or ""):
        array = tensors.to_numpy(found[value.name or ""])
        edit.replace_uses(value, graph.add_weight(f"{value.name}_settled", array))
    edit.remove_dead(graph)
    return [node.name or "" for node, read in layers.items() if not settled.isdisjoint(read)]


def _has_cut_gates(node: ir.Node) -> bool:
    """Whether it is a recurrent layer whose weights are computed."""
    weights = node.inputs[1:4] if node.op_type in _RECURRENT else ()
    return any(value is not None and value.const_value is None for value in weights)


def _fix_sizes(graph: Graph) -> None:
    """Computes once each Shape that does not change with the batch: torch cuts the gates of an LSTM by the size of its state.

    Nothing where other axes than the batch are open.
    """
    try:
        one, other = (shapes.infer(graph, shapes.example_shapes(graph, n)) for n in (2, 3))
    except Unsupported:
        return
    for node in (n for n in graph.nodes if n.op_type == "Shape"):
        name, output = _name(node.inputs[0]), node.outputs[0]
        start, end = (node.attributes.get_int(key, default) for key, default in _WHOLE.items())
        sizes = one[name][start:end]
        if sizes == other[name][start:end] and not output.is_graph_output():
            array = np.array(sizes, np.int64)
            edit.replace_uses(output, graph.add_weight(f"{output.name}_value", array))
    fold.constants(graph)


def _made_weights(layer: ir.Node, made: Collection[ir.Node]) -> list[ir.Value]:
    slots = _WEIGHTS.get(layer.op_type, ())
    given = [layer.inputs[slot] for slot in slots if slot < len(layer.inputs)]
    return [value for value in given if value is not None and value.producer() in made]


def _is_own(value: ir.Value, size: int, made: Collection[ir.Node]) -> bool:
    """Whether a value of this size is made of no fewer floats, which nothing else is made of."""
    cone = _cone(value)
    floats = [
        v for v in cone if v.const_value is not None and v.const_value.dtype.is_floating_point()
    ]
    sizes = {v: v.const_value.size for v in floats if v.const_value is not None}
    return size <= sum(sizes.values()) and not any(
        _is_tied(source, cone, made) for source in floats if 2 * sizes[source] >= size
    )


def _is_tied(source: ir.Value, cone: set[ir.Value], made: Collection[ir.Node]) -> bool:
    """Whether a weight is read elsewhere too, other than by cutting a part out of it."""
    readers = source.consumers()
    if any(reader not in made for reader in readers):
        return True
    outside = [reader for reader in readers if cone.isdisjoint(reader.outputs)]
    return bool(outside) and any(reader.op_type not in _CUTS for reader in readers)


def _cone(value: ir.Value) -> set[ir.Value]:
    """All values that a value is made of, itself too."""
    todo, seen = [value], {value}
    while todo:
        maker = todo.pop().producer()
        new = {v for v in (maker.inputs if maker else ()) if v is not None} - seen
        seen |= new
        todo.extend(new)
    return seen


def _name(value: ir.Value | None) -> str:
    return (value.name if value is not None else None) or ""
