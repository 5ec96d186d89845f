"""New nodes and constants with fresh, readable names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from workers.engine.graph import Graph


class Builder:
    """Makes nodes and constants for one graph; where a node goes is said by the caller."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._names = {v.name for v in graph.inputs} | set(graph.initializers)
        self._names |= {v.name for node in graph.nodes for v in node.outputs}
        self._names |= {node.name for node in graph.nodes}
        self._zeros: dict[tuple[tuple[int, ...], str], ir.Value] = {}

    def fresh(self, wanted: str) -> str:
        """The wanted name, or with the first number that makes it unique."""
        name, number = wanted, 1
        while name in self._names:
            name, number = f"{wanted}_{number}", number + 1
        self._names.add(name)
        return name

    def constant(self, wanted: str, array: npt.NDArray[np.generic]) -> ir.Value:
        """A new initializer."""
        return self.graph.add_weight(self.fresh(wanted), array)

    def zeros(self, shape: tuple[int, ...], dtype: type[np.integer]) -> ir.Value:
        """Zero points of this shape, stored once for all who need them."""
        key = (shape, np.dtype(dtype).name)
        if key not in self._zeros:
            name = "_".join(["zeros", key[1], *map(str, shape)])
            self._zeros[key] = self.constant(name, np.zeros(shape, dtype))
        return self._zeros[key]

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        wanted: str,
        *,
        attributes: Mapping[str, int | float | Sequence[int]] | None = None,
        like: ir.Value | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Node:
        """A new node of one output called `wanted`, shaped like `like`; it is in no graph yet."""
        out = ir.Value(
            name=self.fresh(wanted),
            type=ir.TensorType(dtype),
            shape=like.shape if like is not None else None,
        )
        return ir.node(
            op_type, inputs, attributes, outputs=[out], name=self.fresh(f"{out.name}_node")
        )

    def take_place(self, old: ir.Value, new: ir.Value) -> None:
        """Everything that read `old`, outputs of the graph too, reads `new`, which takes its name."""
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.shape, name = old.shape, old.name
        old.name, new.name = self.fresh(f"{name}_before"), name

    def insert_before(self, node: ir.Node, *new: ir.Node) -> None:
        """Puts the nodes right before `node`, in the order given."""
        self.graph.model.graph.insert_before(node, new)

    def insert_where_made(self, value: ir.Value, *new: ir.Node) -> None:
        """Puts the nodes right after the node that makes `value`; first of all for an input of the graph."""
        graph, producer = self.graph.model.graph, value.producer()
        if producer is not None:
            graph.insert_after(producer, new)
        else:
            graph.insert_before(graph[0], new)
