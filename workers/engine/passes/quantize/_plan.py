"""Which nodes run on integers and which values are quantized for them, so that ONNX Runtime fuses everything in between.

ONNX Runtime turns DequantizeLinear -> node -> QuantizeLinear into one integer kernel. Three sorts of nodes:

kernels    Conv, Gemm, MatMul: the reason to quantize. A Conv needs QuantizeLinear behind it to be fused; the others may end in float.
joiners    Add, Concat, pooling ...: have integer kernels with a scale of their own. They join when all their inputs are quantized
           anyway and a quantized value is wanted of them, so that no value goes to float and back.
carriers   Reshape, MaxPool ...: move codes without changing them. Both sides share one scale.

A Relu or Clip right behind an integer kernel disappears: the codes of its output end where it would have cut. Which operators are
what, and how much of this holds, is for the target to say (`_rules`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from workers.engine.passes.quantize._rules import Rules

CARRIERS = frozenset(
    [
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "MaxPool",
        "Reshape",
        "Resize",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ]
)
CUTS = frozenset({"Relu", "Clip"})


@dataclass
class Plan:
    """The decision."""

    kernels: frozenset[ir.Node] = frozenset()
    """The layers and products that it was made for."""
    integer: set[ir.Node] = field(default_factory=set)
    """Nodes that will run on integers: kernels, kept joiners and kept carriers."""
    sources: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """Values to quantize, in topological order, each with the value whose range gives its codes."""
    cut: set[ir.Node] = field(default_factory=set)
    """Relu and Clip nodes behind kernels and joiners that the codes replace."""


def make(nodes: Sequence[ir.Node], kernels: Iterable[ir.Node], rules: Rules) -> Plan:
    """Plans for `kernels` among `nodes` (topological). Both inputs of a kernel are quantized unless they are constants."""
    planner = _Planner(nodes, set(kernels), rules)
    planner.look_forward()
    planner.look_back()
    return planner.plan()


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is an initializer."""
    return value is not None and value.const_value is not None


def activations(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node that hold values of the sample; without shapes, indices and other constants."""
    inputs = node.inputs[:1] if node.op_type in CARRIERS else node.inputs
    return [v for v in inputs if v is not None and not is_constant(v)]


def only_use(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value; None when there are several, or it is an output of the graph."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses))[0]


class _Planner:
    def __init__(self, nodes: Sequence[ir.Node], kernels: set[ir.Node], rules: Rules) -> None:
        self._nodes, self._kernels, self._rules = nodes, kernels, rules
        self._wanted = {v for node in nodes if node in kernels for v in activations(node)}
        self._available = set(self._wanted)
        self._kept = set(kernels)

    def look_forward(self) -> None:
        """Finds every value that could be had as codes."""
        for node in self._nodes:
            if node in self._kernels:
                self._available.add(_end(node))
                if node.op_type in self._rules.ends:
                    self._wanted.add(_end(node))
            elif _is_carrier(node) and node.inputs[0] in self._available:
                self._available.update(node.outputs)
            elif self._joins(node):
                self._available.add(_end(node))

    def look_back(self) -> None:
        """Keeps the joiners and carriers whose codes are wanted, and wants the codes they read."""
        for node in reversed(self._nodes):
            if node in self._kernels or not all(v in self._available for v in activations(node)):
                continue
            if _is_carrier(node):
                ends = set(node.outputs)
            elif self._joins(node):
                ends = {_end(node)}
            else:
                continue
            if ends & self._wanted or (self._rules.eager and not _is_carrier(node)):
                self._kept.add(node)
                self._wanted.update(activations(node))
                self._wanted.update(ends)

    def plan(self) -> Plan:
        plan = Plan(kernels=frozenset(self._kernels), integer=self._kept)
        starts = [v for node in self._nodes for v in activations(node) if v.producer() is None]
        for value in [*dict.fromkeys(starts), *(v for node in self._nodes for v in node.outputs)]:
            if value not in self._wanted:
                continue
            maker = value.producer()
            plan.sources[value] = value
            if maker is not None and maker in self._kept and _is_carrier(maker):
                plan.sources[value] = plan.sources[activations(maker)[0]]
            elif maker is not None and self._rules.cuts and _cut_node(maker) in self._kept:
                plan.cut.add(maker)
        return plan

    def _joins(self, node: ir.Node) -> bool:
        """Whether a node has an integer kernel and reads nothing but what could be had as codes."""
        if node.op_type not in self._rules.joiners:
            return False
        if node.op_type == "AveragePool" and _is_unusual(node):
            return False
        return all(v in self._available for v in node.inputs)


def _cut_node(node: ir.Node) -> ir.Node | None:
    """The node before a Relu or Clip that could disappear."""
    if node.op_type not in CUTS or node.inputs[0] is None:
        return None
    before = node.inputs[0].producer()
    return before if before is not None and _end(before) is node.outputs[0] else None


def _end(node: ir.Node) -> ir.Value:
    """The output of a kernel or joiner, after the Relu or Clip that its codes can replace."""
    out = node.outputs[0]
    after = only_use(out)
    if after is not None and after.op_type in CUTS and _keeps_zero(after):
        return after.outputs[0]
    return out


def _keeps_zero(node: ir.Node) -> bool:
    """Whether 0 lies between the bounds, so that a range that must hold 0 ends at both of them."""
    if node.op_type == "Relu":
        return True
    bounds = [v for v in node.inputs[1:] if v is not None]
    if not all(is_constant(v) for v in bounds):
        return False
    low, high = (_scalar(node, 1, -1.0), _scalar(node, 2, 1.0))
    return low <= 0.0 <= high


def _scalar(node: ir.Node, index: int, default: float) -> float:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None:
        return default
    return float(value.const_value.numpy())


def _is_carrier(node: ir.Node | None) -> bool:
    if node is None or node.op_type not in CARRIERS or is_constant(node.inputs[0]):
        return False
    if node.op_type == "MaxPool":
        return len(node.outputs) == 1
    if node.op_type == "Resize":
        return node.attributes.get_string("mode", "nearest") == "nearest"
    return True


def _is_unusual(pool: ir.Node) -> bool:
    """Whether its windows are dilated or go beyond the end, which integer kernels can't."""
    return bool(pool.attributes.get_int("ceil_mode", 0)) or "dilations" in pool.attributes
