"""PyTorch out: a graph as a .pt2 file that torch.export.load runs with nothing of ours installed."""

from __future__ import annotations

import inspect
import keyword
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from workers.engine.errors import Unsupported
from workers.engine.formats import quiet
from workers.engine.graph import Graph, numbers, program, roles, tensors
from workers.engine.graph.ops.constant import HOST_ELEMENTS

_BATCH = 3
"""Samples of the example: 1 and 2 are numbers that networks have of their own."""


_ORIGINS = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom")


class Network(nn.Module):
    """A graph as torch.export takes it: weights under their dotted names, inputs under theirs."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._program = program.prepare(graph.model.graph)
        self._numbers: dict[str, numbers.Numbers] = {}
        self._places: dict[str, str] = {}
        for name, value in graph.initializers.items():
            self._own(name, value)

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Inputs in order; answers the output, or a tuple of them."""
        values: program.Values = dict(zip(self._program.inputs, inputs, strict=True))
        tensors_ = {name: self._get(place) for name, place in self._places.items()}
        machine = numbers.Machine(torch.device("cpu"))
        outputs = machine.run(self._program, {**values, **tensors_, **self._numbers})
        ready = tuple(x.tensor() if isinstance(x, numbers.Numbers) else x for x in outputs)
        return ready if len(ready) > 1 else ready[0]

    def _own(self, name: str, value: ir.Value) -> None:
        assert value.const_value is not None
        tensor, role = tensors.from_ir(value.const_value).clone(), roles.role(value)
        is_code = tensor.dtype in (torch.int8, torch.uint8)
        if role is roles.Role.CONSTANT and not is_code and tensor.numel() <= HOST_ELEMENTS:
            self._numbers[name] = numbers.Numbers.of(tensor)
            return
        *path, last = _identifiers(name)
        owner = self._owner(path)
        while hasattr(owner, last):
            last += "_"
        if role is roles.Role.WEIGHT:
            owner.register_parameter(last, nn.Parameter(tensor))
        else:
            owner.register_buffer(last, tensor)
        self._places[name] = ".".join([*path, last])

    def _owner(self, path: Sequence[str]) -> nn.Module:
        owner: nn.Module = self
        for index, part in enumerate(path):
            if not isinstance(getattr(owner, part, None), nn.Module):
                if hasattr(owner, part):
                    raise Unsupported(
                        f"'{'.'.join(path[: index + 1])}' is both a weight and a layer"
                    )
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        return owner

    def _get(self, place: str) -> torch.Tensor:
        owner, _, last = place.rpartition(".")
        found: torch.Tensor = getattr(self.get_submodule(owner), last)
        return found


def save(graph: Graph, path: Path, example: Mapping[str, np.ndarray]) -> None:
    """Writes the graph as an exported program; free sizes stay free.

    The file appears whole or not at all.

    Args:
        graph: What to write.
        path: Where.
        example: Inputs by name, of any batch size.

    Raises:
        Unsupported: torch can't export what an operator does; the message names it.
    """
    exported = export(graph, example)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("wb") as file:
        torch.export.save(exported, file)
    os.replace(unfinished, path)


def export(graph: Graph, example: Mapping[str, np.ndarray]) -> ExportedProgram:
    """The graph as a program of torch.

    Raises:
        Unsupported: torch can't export what an operator does; the message names it.
    """
    network = Network(graph).eval()
    names = [_argument(value.name or "x") for value in graph.inputs]
    network.forward = _named(network.forward, names)  # type: ignore[method-assign]
    inputs = tuple(_example(value, example) for value in graph.inputs)
    free = {name: _free(value) for name, value in zip(names, graph.inputs, strict=True)}
    try:
        with quiet.quiet():
            exported = torch.export.export(network, inputs, dynamic_shapes=free, strict=False)
    except Exception as error:
        where = " ".join(getattr(error, "__notes__", [])[:1])
        raise Unsupported(
            f"torch.export can't follow the network {where}: {quiet.cause(error)}",
            layer=where,
            hint="ask for the format 'onnx' alone",
        ) from error
    _forget_origins(exported)
    return exported


def _forget_origins(exported: ExportedProgram) -> None:
    """Leaves out the example inputs, which are a pickle, and where in this code each node came from; in place."""
    exported.example_inputs = None
    for module in exported.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for key in _ORIGINS:
                node.meta.pop(key, None)


def _named(forward: Any, names: Sequence[str]) -> Any:
    """The same function with named arguments, which torch.export keeps."""

    def named(*inputs: torch.Tensor) -> Any:
        return forward(*inputs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
    return named


def _example(value: ir.Value, example: Mapping[str, np.ndarray]) -> torch.Tensor:
    """The given input; repeated to a batch that is no special number where the batch is free."""
    array = example[value.name or ""]
    if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
        array = np.take(array, np.arange(_BATCH) % len(array), axis=0)
    return tensors.borrow(array).clone()


def _free(value: ir.Value) -> dict[int, Any] | None:
    """The batch must stay free; other open sizes may turn out to be fixed by the network."""
    dims = value.shape if value.shape is not None else ()
    return {
        axis: Dim.DYNAMIC if axis == 0 else Dim.AUTO
        for axis, dim in enumerate(dims)
        if not isinstance(dim, int)
    } or None


def _identifiers(name: str) -> list[str]:
    """The parts of a dotted name, each fit for an attribute."""
    return [_identifier(part) for part in name.split(".") if part] or ["weight"]


def _identifier(text: str) -> str:
    plain = re.sub(r"\W", "_", text, flags=re.ASCII)
    return f"{plain}_" if keyword.iskeyword(plain) or not plain else plain


def _argument(text: str) -> str:
    plain = _identifier(text)
    return plain if plain.isidentifier() else f"x_{plain}"
