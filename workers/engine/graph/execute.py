"""Run a graph: as a trainable module, or once over numpy arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from workers.engine.errors import BadModel
from workers.engine.graph import element_types, program, roles, tensors
from workers.engine.graph.graph import Graph
from workers.engine.graph.ops.constant import HOST_ELEMENTS


class GraphModule(nn.Module):
    """A graph that torch can train. Takes the graph's inputs in order, answers a tuple of its outputs.

    In train() BatchNormalization uses the batch's statistics and updates the running ones, and
    Dropout drops. The module owns copies of all weights: the graph changes by `write_back` only.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._program = program.prepare(graph.model.graph)
        self._parameter_keys: dict[str, str] = {}
        self._buffer_keys: dict[str, str] = {}
        self._statistics: frozenset[str] = frozenset()
        self._host: dict[str, torch.Tensor] = {}
        for name, value in graph.initializers.items():
            self._own(name, value)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters by initializer name. (Keys of state_dict have / for the dots in it.)"""
        return {name: self.get_parameter(key) for name, key in self._parameter_keys.items()}

    @property
    def statistics(self) -> dict[str, torch.Tensor]:
        """Running means and variances by initializer name."""
        return {name: self.get_buffer(self._buffer_keys[name]) for name in sorted(self._statistics)}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        tensor: torch.Tensor
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the graph over its inputs, in order."""
        outputs, _ = self._run(inputs, ())
        return outputs

    def run_with(
        self,
        weights: Mapping[str, torch.Tensor],
        inputs: Collection[torch.Tensor],
        through: Mapping[str, program.Change] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Run the graph with other tensors in the place of these weights, by initializer name; gradients reach them.

        `through` names values that nodes make, and the functions that they go through before anybody reads them.
        """
        outputs, _ = self._run(inputs, (), weights, through)
        return outputs

    def values(
        self, inputs: Collection[torch.Tensor], names: Collection[str]
    ) -> dict[str, torch.Tensor]:
        """Run the graph and answer the values of these names: inputs, outputs or anything between.

        Raises:
            KeyError: the graph has no such value.
        """
        _, kept = self._run(inputs, names)
        return {name: kept[name] for name in names}

    def _run(
        self,
        inputs: Collection[torch.Tensor],
        names: Collection[str],
        instead: Mapping[str, torch.Tensor] | None = None,
        through: Mapping[str, program.Change] | None = None,
    ) -> tuple[tuple[torch.Tensor, ...], program.Values]:
        values = self._feeds(inputs)
        device = next((x.device for x in inputs if program.is_away(x)), self.device)
        given: program.Values = {**values, **self._constants(), **(instead or {})}
        machine = program.Machine(
            device,
            training=self.training,
            twins=dict(self._twins()),
            keep=names,
            through=through,
        )
        kept = {name: given[name] for name in names if name in given}
        outputs = machine.run(self._program, given)
        return tuple(outputs), {**kept, **machine.kept}

    def _feeds(self, inputs: Collection[torch.Tensor]) -> program.Values:
        wanted = self._program.inputs
        if len(inputs) != len(wanted):
            raise TypeError(
                f"the graph has {len(wanted)} inputs ({', '.join(wanted)}), got {len(inputs)}"
            )
        return dict(zip(wanted, inputs, strict=True))

    def _constants(self) -> program.Values:
        return {**dict(self._twins()), **self._host, **self.weights}

    def _twins(self) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, self.get_buffer(key)) for name, key in self._buffer_keys.items())

    def _own(self, name: str, value: ir.Value) -> None:
        assert value.const_value is not None
        tensor = tensors.from_ir(value.const_value).clone()
        key = self._unused_key(name)
        known = roles.role(value)
        if known is roles.Role.WEIGHT:
            self.register_parameter(key, nn.Parameter(tensor))
            self._parameter_keys[name] = key
            return
        self.register_buffer(key, tensor, persistent=known is roles.Role.STATISTIC)
        self._buffer_keys[name] = key
        if known is roles.Role.STATISTIC:
            self._statistics |= {name}
        elif tensor.numel() <= HOST_ELEMENTS:
            self._host[name] = tensor

    def _unused_key(self, name: str) -> str:
        key = name.replace(".", "/")
        while hasattr(self, key):
            key += "_"
        return key


def as_module(graph: Graph) -> GraphModule:
    """The graph as a trainable torch module.

    Raises:
        Unsupported: a node has an unknown operator or attribute.
    """
    return GraphModule(graph)


def write_back(module: GraphModule, graph: Graph) -> None:
    """Put the module's weights and running statistics into the graph, in the types it had."""
    for name, tensor in {**module.weights, **module.statistics}.items():
        before = graph.weight(name)
        after = tensors.to_numpy(tensor).astype(before.dtype)
        if not np.array_equal(before, after):
            graph.set_weight(name, after.copy())


def run(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the graph once on the CPU; feeds and answers are by name.

    Raises:
        BadModel: an input is missing.
    """
    outputs = [value.name or "" for value in graph.outputs]
    return observe(graph, feeds, outputs)


def observe(
    graph: Graph, feeds: Mapping[str, np.ndarray], names: Collection[str]
) -> dict[str, np.ndarray]:
    """Run the graph once on the CPU and answer the values of these names.

    Raises:
        BadModel: an input is missing.
        KeyError: the graph has no such value.
    """
    wanted = [value.name or "" for value in graph.inputs]
    if missing := [name for name in wanted if name not in feeds]:
        raise BadModel(f"no value for input {', '.join(missing)}")
    module = as_module(graph).eval()
    with torch.no_grad():
        values = module.values([_tensor(feeds[name]) for name in wanted], names)
    declared = {value.name: element_types.of(value) for value in (*graph.inputs, *graph.outputs)}
    return {name: _array(value, declared.get(name)) for name, value in values.items()}


def _tensor(value: Any) -> Any:
    if isinstance(value, list):
        return [_tensor(element) for element in value]
    return None if value is None else tensors.borrow(value)


def _array(value: Any, data_type: ir.DataType | None) -> Any:
    if isinstance(value, list):
        return [_array(element, data_type) for element in value]
    return None if value is None else tensors.to_numpy(value, data_type)
