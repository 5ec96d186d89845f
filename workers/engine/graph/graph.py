"""The Graph: an onnx_ir.Model with the few questions every pass asks of it."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from workers.engine.graph import roles


class Graph:
    """A network. Weights are initializers, never Constant nodes; functions are inlined; names are unique."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._taken: set[str] = set()

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """What a caller feeds, in order; initializers are not among them."""
        initializers = self.model.graph.initializers
        return tuple(v for v in self.model.graph.inputs if v.name not in initializers)

    @property
    def outputs(self) -> tuple[ir.Value, ...]:
        """What it answers, in order."""
        return tuple(self.model.graph.outputs)

    @property
    def nodes(self) -> list[ir.Node]:
        """The nodes of the main graph in topological order."""
        return list(self.model.graph)

    @property
    def initializers(self) -> dict[str, ir.Value]:
        """Constant values by name."""
        return dict(self.model.graph.initializers)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self.model.graph.opset_imports[""]

    def weight(self, name: str) -> np.ndarray:
        """The elements of an initializer, read-only where they are mapped from the file.

        Raises:
            KeyError: there is no such initializer.
        """
        tensor = self.model.graph.initializers[name].const_value
        assert tensor is not None
        return tensor.numpy()

    def set_weight(self, name: str, array: np.ndarray) -> None:
        """Replace the elements of an initializer; shape and type follow the array."""
        value = self.model.graph.initializers[name]
        value.const_value = ir.Tensor(np.asarray(array, order="C"), name=name)
        value.shape = ir.Shape(array.shape)
        value.type = ir.TensorType(value.const_value.dtype)

    def add_weight(self, name: str, array: np.ndarray) -> ir.Value:
        """Add an initializer; a number is appended to a name that is taken."""
        unique = self.unused_name(name)
        tensor = ir.Tensor(np.array(array, order="C", copy=True), name=unique)
        value = ir.Value(
            name=unique,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.model.graph.register_initializer(value)
        return value

    def unused_name(self, wanted: str) -> str:
        """The wanted name, or that with a number, that no value and no node bears and none was given yet."""
        self._taken = self._taken or self._names()
        tries = (wanted if n == 0 else f"{wanted}_{n}" for n in itertools.count())
        unused = next(name for name in tries if name not in self._taken)
        self._taken.add(unused)
        return unused

    def clone(self) -> Graph:
        """A copy whose nodes and values are its own; the tensors, which never change, are shared."""
        return Graph(self.model.clone())

    def is_parameter(self, name: str) -> bool:
        """Whether an initializer is a float weight that training may change."""
        value = self.model.graph.initializers.get(name)
        return value is not None and roles.role(value) is roles.Role.WEIGHT

    def parameters(self) -> dict[str, np.ndarray]:
        """The weights that training may change, by name."""
        return {name: self.weight(name) for name in self.initializers if self.is_parameter(name)}

    def _names(self) -> set[str]:
        graph = self.model.graph
        names = {*graph.initializers, *(value.name or "" for value in graph.inputs)}
        for node in ir.traversal.RecursiveGraphIterator(graph):
            names.add(node.name or "")
            names.update(output.name or "" for output in node.outputs)
        return names
