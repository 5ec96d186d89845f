"""Rewrites that change no result but let integer kernels match, done once before quantization."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from workers.engine.graph import Graph, edit
from workers.engine.passes.quantize import _plan
from workers.engine.passes.quantize._builder import Builder

_COMMUTING = frozenset({"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def drop_identities(graph: Graph) -> None:
    """Removes Identity, and Dropout, which does nothing at inference."""
    for node in graph.nodes:
        unused_mask = all(not v.uses() and not v.is_graph_output() for v in node.outputs[1:])
        source = node.inputs[0] if node.inputs else None
        if node.op_type not in ("Identity", "Dropout") or source is None or not unused_mask:
            continue
        if not node.outputs[0].is_graph_output():
            edit.replace_uses(node.outputs[0], source)
    edit.remove_dead(graph)


def pull_cuts(graph: Graph) -> None:
    """Moves a Relu or Clip in front of MaxPool, Reshape and their like, next to the layer whose codes can replace it.

    Conv -> MaxPool -> Relu    becomes    Conv -> Relu -> MaxPool, which computes the same.
    """
    builder = Builder(graph)
    for node in graph.nodes:
        if node.op_type not in _plan.CUTS or not all(map(_plan.is_constant, node.inputs[1:])):
            continue
        while (mover := _mover_before(node)) is not None:
            source, moved, out = mover.inputs[0], mover.outputs[0], node.outputs[0]
            edit.replace_uses(out, moved, outputs=True)
            moved.name, out.name = out.name, builder.fresh(f"{out.name}_cut")
            moved.shape, out.shape = out.shape, None
            node.replace_input_with(0, source)
            mover.replace_input_with(0, out)
            graph.model.graph.remove(node)
            graph.model.graph.insert_before(mover, node)


def _mover_before(cut: ir.Node) -> ir.Node | None:
    """The node before a Relu or Clip that only moves values or takes their maximum, for it alone."""
    value = cut.inputs[0]
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type not in _COMMUTING or len(node.outputs) > 1:
        return None
    return node if _plan.only_use(value) is cut and not _plan.is_constant(node.inputs[0]) else None


def pool_means(graph: Graph, ranks: Mapping[str, int]) -> None:
    """Turns means over all of space into pooling, which has an integer kernel.

    ReduceMean(axes 2, 3) of x: [N, C, H, W]    becomes    GlobalAveragePool, then Squeeze where keepdims is 0.
    """
    builder = Builder(graph)
    for node in graph.nodes:
        if node.op_type != "ReduceMean" or not _is_over_space(node, ranks):
            continue
        out = node.outputs[0]
        new = [builder.node("GlobalAveragePool", node.inputs[:1], f"{out.name}_pool")]
        if not node.attributes.get_int("keepdims", 1):
            new.append(
                builder.node("Squeeze", [new[0].outputs[0], node.inputs[1]], f"{out.name}_flat")
            )
        builder.insert_before(node, *new)
        builder.take_place(out, new[-1].outputs[0])
    edit.remove_dead(graph)


def _is_over_space(node: ir.Node, ranks: Mapping[str, int]) -> bool:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    rank = ranks.get(_name(node.inputs[0]), 0)
    if not 3 <= rank <= 5 or axes is None or not _plan.is_constant(axes):
        return False
    return sorted(int(a) % rank for a in array(axes).reshape(-1)) == list(range(2, rank))


def join_biases(graph: Graph, ranks: Mapping[str, int]) -> None:
    """Makes biases behind MatMul digestible for ONNX Runtime.

    It turns MatMul -> Add(bias: [N]) into a float Gemm before it looks for integer kernels, and int8 is lost. Therefore
    x: [M, K] -> Gemm(x, w, bias), whose bias becomes int32; x: [.., M, K] -> Add(bias: [1, 1, N]), which it leaves alone.
    `ranks`: number of dimensions of each value.
    """
    builder = Builder(graph)
    for node in graph.nodes:
        if node.op_type != "MatMul" or not _plan.is_constant(node.inputs[1]):
            continue
        add = _plan.only_use(node.outputs[0])
        bias = bias_operand(node, add)
        if add is None or bias is None:
            continue
        rank = ranks[_name(node.inputs[0])]
        if rank == 2 and _rank(node.inputs[1]) == 2:
            _to_gemm(builder, node, add, bias)
        elif rank > 2:
            _spread_bias(builder, add, bias)


def scale_gemms(graph: Graph) -> None:
    """Folds alpha and beta of Gemm into its constants, and makes its bias [N]; integer kernels know neither."""
    builder = Builder(graph)
    for node in graph.nodes:
        if node.op_type == "Gemm" and _plan.is_constant(node.inputs[1]):
            _scale_input(builder, node, 1, node.attributes.get_float("alpha", 1.0))
            if len(node.inputs) > 2 and _plan.is_constant(node.inputs[2]):
                _scale_input(builder, node, 2, node.attributes.get_float("beta", 1.0))
                _flatten_bias(builder, node)


def array(value: ir.Value | None) -> npt.NDArray[np.generic]:
    """The elements of a constant."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _name(value: ir.Value | None) -> str:
    assert value is not None
    assert value.name is not None
    return value.name


def _rank(value: ir.Value | None) -> int:
    return array(value).ndim


def bias_operand(matmul: ir.Node, add: ir.Node | None) -> ir.Value | None:
    """The constant that `add` adds to each row of the product; None where it is no bias."""
    if add is None or add.op_type != "Add":
        return None
    other = add.inputs[1] if add.inputs[0] is matmul.outputs[0] else add.inputs[0]
    if not _plan.is_constant(other):
        return None
    columns = array(matmul.inputs[1]).shape[-1]
    shape = array(other).shape
    return other if shape[-1:] == (columns,) and all(n == 1 for n in shape[:-1]) else None


def _to_gemm(builder: Builder, matmul: ir.Node, add: ir.Node, bias: ir.Value) -> None:
    out = add.outputs[0]
    flat = builder.constant(f"{bias.name}_gemm", array(bias).reshape(-1))
    gemm = builder.node(
        "Gemm", [matmul.inputs[0], matmul.inputs[1], flat], f"{out.name}_gemm", like=out
    )
    builder.insert_before(add, gemm)
    builder.take_place(out, gemm.outputs[0])
    edit.remove_dead(builder.graph)


def _spread_bias(builder: Builder, add: ir.Node, bias: ir.Value) -> None:
    if array(bias).ndim < 3:
        index = 0 if add.inputs[0] is bias else 1
        wide = builder.constant(f"{bias.name}_wide", array(bias).reshape(1, 1, -1))
        add.replace_input_with(index, wide)


def _scale_input(builder: Builder, node: ir.Node, index: int, factor: float) -> None:
    attribute = {1: "alpha", 2: "beta"}[index]
    if factor != 1.0:
        value = node.inputs[index]
        old = np.asarray(array(value), dtype=np.float32)
        scaled = (old * np.float32(factor)).astype(array(value).dtype)
        node.replace_input_with(index, builder.constant(f"{_name(value)}_scaled", scaled))
    node.attributes.pop(attribute, None)


def _flatten_bias(builder: Builder, node: ir.Node) -> None:
    bias, weight = array(node.inputs[2]), array(node.inputs[1])
    columns = weight.shape[0 if node.attributes.get_int("transB", 0) else 1]
    if bias.shape != (columns,) and bias.size in (1, columns) and bias.shape[:-1] in ((), (1,)):
        flat = np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (columns,)))
        node.replace_input_with(2, builder.constant(f"{_name(node.inputs[2])}_flat", flat))
