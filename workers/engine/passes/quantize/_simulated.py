"""A network that computes with the numbers that codes stand for, and can be trained so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from workers.engine.graph import Graph, execute
from workers.engine.passes.quantize import _affine, _plan, _prepare, _static
from workers.engine.passes.quantize._builder import Builder
from workers.engine.passes.quantize._plan import Plan
from workers.engine.passes.quantize._rules import Rules
from workers.engine.passes.quantize._static import Codes
from workers.engine.passes.quantize._steps import StepSize
from workers.engine.passes.quantize._weights import Layer


class Simulated(nn.Module):
    """A float graph whose weights, and values where the plan wants codes, go through learned steps. Weights that were 0 stay so.

    The graph is copied; places for codes are where `_static` puts QuantizeLinear and DequantizeLinear, so that the exported file
    computes the same.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        layers: Sequence[Layer],
        codes: Codes,
        rules: Rules,
        *,
        relative: bool,
    ) -> None:
        super().__init__()
        copied, places = _with_places(graph, plan, codes, rules)
        self.network = execute.as_module(copied)
        self.weights = {layer.target.weight: _of_weight(layer, relative) for layer in layers}
        self.activations = {
            source.name or "": _of_activation(codes[value], relative)
            for value, source in plan.sources.items()
        }
        self._registered = nn.ModuleList([*self.weights.values(), *self.activations.values()])
        self._through = {place: self.activations[source] for place, source in places.items()}
        self._zeros = _zeros(self.network.weights, self.weights)
        self._biases = _biases(layers, plan, self.network.weights)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Runs the network."""
        own = self.network.weights
        weights = {name: step(own[name]) for name, step in self.weights.items()}
        weights.update({bias: self._rounded(bias, *of) for bias, of in self._biases.items()})
        return self.network.run_with(weights, inputs, self._through)

    def _rounded(self, bias: str, source: str, weight: str) -> Tensor:
        """A bias in whole units of what integer kernels add."""
        b = self.network.weights[bias]
        units = (self.activations[source].scale * self.weights[weight].scale).detach()
        rounded = (b.double() / units).round() * units
        return b + (rounded.to(b.dtype) - b).detach()

    @torch.no_grad()
    def keep_zeros(self) -> None:
        """Sets weights that were 0 at first to 0 again."""
        weights = self.network.weights
        for name, mask in self._zeros.items():
            weights[name].masked_fill_(mask.to(weights[name].device), 0.0)

    def zeros(self, name: str) -> int:
        """How many zeros of a weight are kept."""
        return int(self._zeros[name].sum()) if name in self._zeros else 0

    def coded_activations(self, plan: Plan, codes: Codes) -> Codes:
        """Codes with the learned steps; zero points are the first ones."""
        return {
            value: replace(
                codes[value], scale=np.float32(self.activations[source.name or ""].learned())
            )
            for value, source in plan.sources.items()
        }

    def coded_layer(self, graph: Graph, layer: Layer, given: _affine.Activation | None) -> Layer:
        """The layer with codes of its trained weight, which `graph` has; wide enough for its bias where that becomes integers."""
        name, bias = layer.target.weight, layer.target.bias
        scale = self.weights[name].learned()
        if scale.shape != layer.codes.scale.shape:  # shared with a layer that counts other outputs
            scale = layer.codes.scale
        if bias is not None and given is not None:
            floor = _affine.scale_floor(np.asarray(_prepare.array(bias), np.float32), given.scale)
            scale = np.maximum(scale, floor if layer.codes.axis is not None else floor.max())
        values = np.asarray(graph.weight(name), dtype=np.float32)
        codes = _affine.coded(values, scale.astype(np.float32), layer.codes.axis, layer.limit)
        return replace(layer, codes=codes, input=given)


class _Places(_static.Inserter):
    """Puts Identity where an Inserter puts QuantizeLinear and DequantizeLinear."""

    def __init__(self, builder: Builder, plan: Plan, codes: Codes) -> None:
        super().__init__(builder, plan, codes)
        self._sources = {source: source.name or "" for source in plan.sources.values()}
        self._found: list[tuple[ir.Value, str]] = []

    def nodes(self, wanted: ir.Value, value: ir.Value) -> list[ir.Node]:
        place = self._builder.node("Identity", [value], f"{value.name}_dq", like=value)
        self._found.append((place.outputs[0], self._sources[self._plan.sources[wanted]]))
        return [place]

    @property
    def found(self) -> dict[str, str]:
        """Values by name, each with the name of the value whose codes it has."""
        return {place.name or "": source for place, source in self._found}


def _with_places(
    graph: Graph, plan: Plan, codes: Codes, rules: Rules
) -> tuple[Graph, dict[str, str]]:
    """A copy of the graph with a place for each coded value; these values, with the names of their sources."""
    copied = graph.clone()
    kernels = {node.name for node in plan.kernels}
    again = _plan.make(copied.nodes, [n for n in copied.nodes if n.name in kernels], rules)
    by_name = {value.name: found for value, found in codes.items()}
    places = _Places(
        Builder(copied), again, {value: by_name[value.name] for value in again.sources}
    )
    for value in again.sources:
        places.insert(value)
    return copied, places.found


def _of_weight(layer: Layer, relative: bool) -> StepSize:
    codes = layer.codes
    return StepSize(
        codes.scale, -layer.limit, layer.limit, axis=codes.axis, of_samples=False, relative=relative
    )


def _of_activation(codes: _affine.Activation, relative: bool) -> StepSize:
    low, high = (limit - int(codes.zero) for limit in codes.limits)
    return StepSize(np.array(codes.scale), low, high, axis=None, of_samples=True, relative=relative)


def _biases(
    layers: Sequence[Layer], plan: Plan, weights: Mapping[str, nn.Parameter]
) -> dict[str, tuple[str, str]]:
    """Biases that are added to integers, each with the names of the source of the input's codes and of the weight."""
    found = {}
    for layer in layers:
        target = layer.target
        if target.bias is not None and layer.input is not None and target.bias.name in weights:
            source = plan.sources[target.input].name or ""
            found[target.bias.name or ""] = (source, target.weight)
    return found


def _zeros(
    weights: Mapping[str, nn.Parameter], wanted: Mapping[str, StepSize]
) -> dict[str, Tensor]:
    """Where weights are 0, as pruning leaves them. A weight that is 0 everywhere has no step that it could grow by."""
    masks = {name: weights[name].detach() == 0 for name in wanted}
    return {name: mask for name, mask in masks.items() if mask.any()}
