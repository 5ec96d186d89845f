"""What is in a model, for the person who uploaded it."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from modelpress.spec.inspection import ModelInspection, TensorInfo
from workers.engine.errors import EngineError
from workers.engine.formats import normal
from workers.engine.graph import Graph, parameters, shapes
from workers.engine.graph.ops import key


def inspect(graph: Graph) -> ModelInspection:
    """Inputs, outputs, parameters, cost and operators of a graph."""
    nodes = ir.traversal.RecursiveGraphIterator(graph.model.graph)
    operators = Counter(key(node.domain, node.op_type) for node in nodes)
    return ModelInspection(
        format="onnx",
        opset=graph.model.meta.get(normal.OPSET_OF_FILE, graph.opset),
        producer=f"{graph.model.producer_name or ''} {graph.model.producer_version or ''}".strip(),
        inputs=tuple(_tensor_info(value) for value in graph.inputs),
        outputs=tuple(_tensor_info(value) for value in graph.outputs),
        parameters=parameters.count(graph),
        macs=_macs(graph),
        operators=dict(sorted(operators.items())),
    )


def _tensor_info(value: ir.Value) -> TensorInfo:
    dims = value.shape if value.shape is not None else ()
    shape = tuple(dim if isinstance(dim, int) else dim.value for dim in dims)
    dtype = "" if value.dtype is None else str(value.dtype.numpy())
    return TensorInfo(name=value.name or "", dtype=dtype, shape=shape)


def _macs(graph: Graph) -> int | None:
    try:
        return sum(shapes.macs(graph, shapes.example_shapes(graph)).values())
    except EngineError:
        return None
