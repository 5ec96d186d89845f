"""Rewrite the operators of old opsets to the form they have in the newest we write.

Each rule says which opset changed the operator; it is applied to models older than that. What is
not listed kept its meaning, or only learnt new types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from workers.engine.errors import Unsupported
from workers.engine.graph import Graph, edit

Rule = Callable[[Graph, ir.Node], None]


def upgrade(model: ir.Model, target: int) -> None:
    """Bring the model to the target opset, in place; newer models are left as they are.

    Operators of ai.onnx.ml that have an equal among the standard ones become that.

    Raises:
        Unsupported: an old operator has no form in the new opset.
    """
    imports = model.graph.opset_imports
    version, graph = imports.get("", target), Graph(model)
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    for node in nodes:
        if node.domain == "ai.onnx.ml" and node.op_type in CONVERSIONS:
            CONVERSIONS[node.op_type](graph, node)
    for since, kind, rule in RULES:
        for node in nodes if version < since else ():
            if node.op_type == kind and node.domain == "":
                rule(graph, node)
    imports[""] = max(version, target)


def _take(node: ir.Node, attribute: str) -> ir.Attr | None:
    return node.attributes.pop(attribute, None)


def _set_operand(node: ir.Node, slot: int, value: ir.Value | None) -> None:
    if len(node.inputs) <= slot:
        node.resize_inputs(slot + 1)
    node.replace_input_with(slot, value)


def _ints_to_operand(attribute: str, slot: int) -> Rule:
    """An attribute of integers became an operand."""

    def rule(graph: Graph, node: ir.Node) -> None:
        taken = _take(node, attribute)
        if taken is not None:
            array = np.array(taken.value, dtype=np.int64).reshape(-1)
            _set_operand(node, slot, graph.add_weight(f"{node.name}_{attribute}", array))

    return rule


def _clip(graph: Graph, node: ir.Node) -> None:
    """Bounds of infinity in disguise are no bounds."""
    for slot, bound in ((1, "min"), (2, "max")):
        taken = _take(node, bound)
        if taken is not None and abs(taken.as_float()) < np.finfo(np.float32).max:
            number = _like(graph, node, np.array(taken.as_float(), np.float32), bound)
            _set_operand(node, slot, number)


def _like(graph: Graph, node: ir.Node, array: np.ndarray, name: str) -> ir.Value:
    """A constant of the type of the node's first operand."""
    constant = graph.add_weight(f"{node.name}_{name}", array)
    first = node.inputs[0]
    if first is not None and first.dtype is ir.DataType.FLOAT:
        return constant
    cast = edit.insert_before(graph, node, "CastLike", [constant, first])
    return cast.outputs[0]


def _pad(graph: Graph, node: ir.Node) -> None:
    _ints_to_operand("pads", 1)(graph, node)
    taken = _take(node, "value")
    if taken is not None and taken.as_float() != 0:
        _set_operand(node, 2, _like(graph, node, np.array(taken.as_float(), np.float32), "value"))


def _slice(graph: Graph, node: ir.Node) -> None:
    for slot, attribute in enumerate(("starts", "ends", "axes"), start=1):
        _ints_to_operand(attribute, slot)(graph, node)


def _top_k(graph: Graph, node: ir.Node) -> None:
    _ints_to_operand("k", 1)(graph, node)


def _dropout(graph: Graph, node: ir.Node) -> None:
    taken = _take(node, "ratio")
    if taken is not None:
        ratio = graph.add_weight(f"{node.name}_ratio", np.array(taken.as_float(), np.float32))
        _set_operand(node, 1, ratio)


def _upsample(graph: Graph, node: ir.Node) -> None:
    """Became the Resize of opset 10, which has a rule of its own."""
    taken = _take(node, "scales")
    if taken is not None and taken.type is ir.AttributeType.FLOATS:
        scales = np.array(taken.as_floats(), np.float32)
        _set_operand(node, 1, graph.add_weight(f"{node.name}_scales", scales))
    node.op_type = "Resize"


def _resize_10(graph: Graph, node: ir.Node) -> None:
    """Before opset 11 the scales were the second operand and coordinates divided by them."""
    scales = node.inputs[1]
    node.resize_inputs(3)
    node.replace_input_with(1, None)
    node.replace_input_with(2, scales)
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
    _set(node, mode="linear" if mode == "bilinear" else mode)
    _set(node, coordinate_transformation_mode="asymmetric", nearest_mode="floor")


def _set(node: ir.Node, **attributes: int | float | str) -> None:
    for attribute in ir.convenience.convert_attributes(attributes):
        node.attributes[attribute.name] = attribute


def _batch_norm_8(graph: Graph, node: ir.Node) -> None:
    spatial = _take(node, "spatial")
    if spatial is not None and not spatial.as_int():
        raise Unsupported(f"BatchNormalization '{node.name}' has spatial=0", layer=node.name or "")


def _batch_norm_13(graph: Graph, node: ir.Node) -> None:
    """Saved statistics, a leftover of training, went away."""
    for output in node.outputs[1:]:
        if output.uses() or output.is_graph_output():
            raise Unsupported(
                f"BatchNormalization '{node.name}' hands out training statistics",
                layer=node.name or "",
                hint="export the model in evaluation mode",
            )
    node.resize_outputs(1)


def _flat_softmax(graph: Graph, node: ir.Node) -> None:
    """Before opset 13 all axes from `axis` on were one. At the last axis, that is the same.

    Softmax(x, axis)    becomes    Reshape(Softmax(Flatten(x, axis)), Shape(x))
    """
    taken = _take(node, "axis")
    axis = 1 if taken is None else taken.as_int()
    x, y = node.inputs[0], node.outputs[0]
    rank = None if x is None or x.shape is None else len(x.shape)
    if axis == -1 or (rank is not None and axis % rank == rank - 1):
        _set(node, axis=-1)
        return
    flat = edit.insert_before(graph, node, "Flatten", [x], attributes={"axis": axis})
    shape = edit.insert_before(graph, node, "Shape", [x])
    node.replace_input_with(0, flat.outputs[0])
    _set(node, axis=-1)
    back = edit.insert_after(graph, node, "Reshape", [y, shape.outputs[0]])
    _redirect(y, back)


def _redirect(value: ir.Value, through: ir.Node) -> None:
    """Let everyone but `through` read the result of `through`; it takes the name if it is an output."""
    result = through.outputs[0]
    for user, slot in list(value.uses()):
        if user is not through:
            user.replace_input_with(slot, result)
    if value.is_graph_output():
        graph = value.graph
        assert graph is not None
        result.name, value.name = value.name, f"{value.name}_flat"
        result.shape, result.type = value.shape, value.type
        for at, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[at] = result


def _group_norm(graph: Graph, node: ir.Node) -> None:
    """Scale and bias were per group; now per channel."""
    x = node.inputs[0]
    channels = x.shape[1] if x is not None and x.shape is not None else None
    groups = node.attributes["num_groups"].as_int()
    for slot in (1, 2):
        value = node.inputs[slot]
        if value is None or value.name not in graph.initializers or not isinstance(channels, int):
            raise Unsupported(
                f"GroupNormalization '{node.name}' of an opset before 21 needs constant weights and a "
                "known number of channels",
                layer=node.name or "",
            )
        repeated = np.repeat(graph.weight(value.name), channels // groups)
        node.replace_input_with(slot, graph.add_weight(f"{value.name}_by_channel", repeated))


def _default(**attributes: str) -> Rule:
    """A default changed: write the old one down."""

    def rule(graph: Graph, node: ir.Node) -> None:
        _set(node, **{k: v for k, v in attributes.items() if k not in node.attributes})

    return rule


def _grid_sample(graph: Graph, node: ir.Node) -> None:
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "bilinear"
    names: Mapping[str, str] = {"bilinear": "linear", "bicubic": "cubic"}
    _set(node, mode=names.get(mode, mode))


def _dft(graph: Graph, node: ir.Node) -> None:
    """The axis became an operand, and its default another."""
    taken = _take(node, "axis")
    axis = np.array(1 if taken is None else taken.as_int(), np.int64)
    _set_operand(node, 2, graph.add_weight(f"{node.name}_axis", axis))


def _split_18(graph: Graph, node: ir.Node) -> None:
    """Equal parts must say how many."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        _set(node, num_outputs=len(node.outputs))


def _scan(graph: Graph, node: ir.Node) -> None:
    raise Unsupported(
        f"Scan '{node.name}' is that of opset 8, with a batch axis of its own",
        layer=node.name or "",
        hint="export the model again with opset 9 or newer",
    )


def _scatter(graph: Graph, node: ir.Node) -> None:
    node.op_type = "ScatterElements"


def _array_feature_extractor(graph: Graph, node: ir.Node) -> None:
    """Picks columns of the last axis; a vector is one row.

    ArrayFeatureExtractor(x, at)    becomes    Gather(x, Reshape(at, [-1]), axis=-1)
    """
    flat = graph.add_weight(f"{node.name}_flat", np.array([-1], np.int64))
    at = edit.insert_before(graph, node, "Reshape", [node.inputs[1], flat])
    node.domain, node.op_type = "", "Gather"
    node.replace_input_with(1, at.outputs[0])
    _set(node, axis=-1)
    x = node.inputs[0]
    if x is None or x.shape is None or len(x.shape) > 1:
        return
    y = node.outputs[0]
    row = graph.add_weight(f"{node.name}_row", np.array([1, -1], np.int64))
    _redirect(y, edit.insert_after(graph, node, "Reshape", [y, row]))


def _scaler(graph: Graph, node: ir.Node) -> None:
    """Scaler(x)    becomes    Mul(Sub(Cast(x, float), offset), scale)"""
    offset, scale = (
        graph.add_weight(f"{node.name}_{name}", np.array(_floats(node, name, default), np.float32))
        for name, default in (("offset", 0.0), ("scale", 1.0))
    )
    to = {"to": int(ir.DataType.FLOAT)}
    cast = edit.insert_before(graph, node, "Cast", [node.inputs[0]], attributes=to)
    centred = edit.insert_before(graph, node, "Sub", [cast.outputs[0], offset])
    node.domain, node.op_type = "", "Mul"
    node.resize_inputs(2)
    node.replace_input_with(0, centred.outputs[0])
    node.replace_input_with(1, scale)


def _floats(node: ir.Node, attribute: str, default: float) -> Sequence[float]:
    taken = _take(node, attribute)
    return [default] if taken is None else taken.as_floats()


CONVERSIONS: Mapping[str, Rule] = {
    "ArrayFeatureExtractor": _array_feature_extractor,
    "Scaler": _scaler,
}

_REDUCTIONS = (
    "L1",
    "L2",
    "LogSum",
    "LogSumExp",
    "Max",
    "Mean",
    "Min",
    "Prod",
    "SumSquare",
)

RULES: tuple[tuple[int, str, Rule], ...] = (
    (9, "BatchNormalization", _batch_norm_8),
    (9, "Scan", _scan),
    (10, "Slice", _slice),
    (10, "TopK", _top_k),
    (10, "Upsample", _upsample),
    (11, "Resize", _resize_10),
    (11, "Clip", _clip),
    (11, "Pad", _pad),
    (11, "Scatter", _scatter),
    (12, "Dropout", _dropout),
    (13, "Softmax", _flat_softmax),
    (13, "LogSoftmax", _flat_softmax),
    (13, "Hardmax", _flat_softmax),
    (13, "Squeeze", _ints_to_operand("axes", 1)),
    (13, "Unsqueeze", _ints_to_operand("axes", 1)),
    (13, "Split", _ints_to_operand("split", 1)),
    (13, "ReduceSum", _ints_to_operand("axes", 1)),
    (14, "BatchNormalization", _batch_norm_13),
    (16, "RoiAlign", _default(coordinate_transformation_mode="output_half_pixel")),
    *((18, f"Reduce{kind}", _ints_to_operand("axes", 1)) for kind in _REDUCTIONS),
    (18, "Split", _split_18),
    (20, "DFT", _dft),
    (20, "GridSample", _grid_sample),
    (21, "GroupNormalization", _group_norm),
)
"""Opset that changed the operator, its name then, and what to do. In order: each sees the result of those before."""
