"""The JSON of an exported program, made into torch's own types field by field. What has no rule never reaches torch."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from typing import Any

from torch._export.serde import schema
from torch._export.serde.union import _Union

from workers.engine.errors import BadModel, Unsupported
from workers.engine.formats.pt2 import operators, texts

MAJOR = schema.SCHEMA_VERSION[0]
MAX_NODES = 50_000
MAX_INTEGER = 2**63

Rule = Callable[[str, str], str]

TEXTS: Mapping[str, Rule] = {
    "Device.type": texts.device,
    "SymExpr.expr_str": texts.expression,
    "SymIntArgument.as_name": texts.identifier,
    "SymFloatArgument.as_name": texts.identifier,
    "SymBoolArgument.as_name": texts.identifier,
    "TensorArgument.name": texts.identifier,
    "GraphArgument.name": texts.identifier,
    "Argument.as_string": texts.constant,
    "Argument.as_strings": texts.constant,
    "NamedArgument.name": texts.argument,
    "Node.target": texts.constant,
    "Node.name": texts.identifier,
    "Graph.tensor_values": texts.identifier,
    "Graph.sym_int_values": texts.identifier,
    "Graph.sym_bool_values": texts.identifier,
    "Graph.sym_float_values": texts.identifier,
    "InputToConstantInputSpec.name": texts.identifier,
    "ConstantValue.as_string": texts.constant,
    "InputToParameterSpec.parameter_name": texts.path,
    "InputToBufferSpec.buffer_name": texts.path,
    "InputToTensorConstantSpec.tensor_constant_name": texts.path,
    "BufferMutationSpec.buffer_name": texts.path,
    "ParameterMutationSpec.parameter_name": texts.path,
    "GradientToParameterSpec.parameter_name": texts.path,
    "GradientToUserInputSpec.user_input_name": texts.identifier,
    "UserInputMutationSpec.user_input_name": texts.identifier,
    "ModuleCallEntry.fqn": texts.constant,
    "ModuleCallSignature.in_spec": texts.structure,
    "ModuleCallSignature.out_spec": texts.structure,
    "ModuleCallSignature.forward_arg_names": texts.identifier,
    "ExportedProgram.range_constraints": texts.symbol,
    "ExportedProgram.torch_version": texts.empty,
    "PayloadMeta.path_name": texts.constant,
    "PayloadConfig.config": texts.path,
}
"""The rule of every field that is a string, or whose keys are."""

LEFT_OUT: Mapping[str, Callable[[], Any]] = {
    "Device.index": lambda: None,
    "Node.metadata": dict,
    "GraphModule.metadata": dict,
    "GraphModule.treespec_namedtuple_fields": dict,
    "Graph.custom_obj_values": dict,
    "ExportedProgram.opset_version": dict,
    "ExportedProgram.verifiers": lambda: ["TRAINING"],
    "ExportedProgram.guards_code": list,
}
"""Fields that nothing here needs, with what torch gets instead."""

REFUSED: Mapping[str, str] = {
    "Argument.as_custom_obj": "an object that is no tensor",
    "Argument.as_operator": "an operator as an argument",
    "Argument.as_string_to_argument": "a dict as an argument",
    "InputSpec.custom_obj": "an object that is no tensor",
    "InputSpec.token": "an effect token",
    "OutputSpec.token": "an effect token",
}


def program(text: bytes) -> schema.ExportedProgram:
    """The program in models/model.json.

    Raises:
        BadModel: it is malformed, or of another version of the schema.
        Unsupported: it calls operators that have no ONNX form, all named, or holds what is no tensor.
    """
    content = _json(text, "the program")
    _check_version(content)
    found: schema.ExportedProgram = _build(schema.ExportedProgram, content, "the program")
    graphs = list(_graphs(found.graph_module.graph))
    nodes = [node for graph in graphs for node in graph.nodes]
    if len(nodes) > MAX_NODES:
        raise BadModel(f"the program has {len(nodes):,} nodes; the limit is {MAX_NODES:,}")
    operators.check(node.target for node in nodes)
    _check_inference(nodes)
    outermost = [call for call in found.graph_module.module_call_graph if not call.fqn]
    found.graph_module.module_call_graph = outermost
    return found


def payload(text: bytes) -> dict[str, schema.PayloadMeta]:
    """Which record each parameter is, by its dotted name.

    Raises:
        BadModel: the list is malformed.
    """
    found = _build(schema.PayloadConfig, _json(text, "the list of weights"), "the list of weights")
    return typing.cast("dict[str, schema.PayloadMeta]", found.config)


def _json(text: bytes, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_twins, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadModel(f"{where} is no JSON: {error}") from error


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _check_version(content: Any) -> None:
    version = content.get("schema_version", {}) if isinstance(content, dict) else {}
    major = version.get("major") if isinstance(version, dict) else None
    if major != MAJOR:
        raise BadModel(
            f"the program is of version {major!a:.32} of torch's schema; version {MAJOR} is read",
            hint="export and save it again with torch 2.13 or newer",
        )


def _build(kind: Any, value: Any, where: str, rule: str = "") -> Any:
    """A value of a type of the schema; `rule` is the field it is for.

    Raises:
        BadModel: it is none.
        Unsupported: it holds what is refused.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _build(inner[0], value, where, rule)
    if origin is list:
        return [_build(inner[0], item, where, rule) for item in _plain(value, list, where)]
    if origin is dict:
        items = _plain(value, dict, where).items()
        return {_text(key, rule, where): _build(inner[1], item, where) for key, item in items}
    if kind is str:
        return _text(value, rule, where)
    if issubclass(kind, _Union):
        return _union(kind, value, where)
    if dataclasses.is_dataclass(kind):
        return _struct(kind, value, where)
    return _number(kind, value, where)


def _struct(kind: Any, value: Any, where: str) -> Any:
    """Fields that a newer torch added are passed over, as torch itself does."""
    content, made = _plain(value, dict, where), {}
    if isinstance(content.get("name"), str) and len(content["name"]) < texts.MAX_TEXT:
        where = f"'{content['name']}'" if content["name"].isidentifier() else where
    for field in dataclasses.fields(kind):
        key = f"{kind.__name__}.{field.name}"
        if key in LEFT_OUT:
            made[field.name] = LEFT_OUT[key]()
        elif field.name in content:
            made[field.name] = _build(_hints(kind)[field.name], content[field.name], where, key)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise BadModel(f"{where} lacks {key}")
    return kind(**made)


def _union(kind: Any, value: Any, where: str) -> Any:
    content = _plain(value, dict, where)
    (name,) = content if len(content) == 1 else ("",)
    key = f"{kind.__name__}.{name}"
    if key in REFUSED:
        raise Unsupported(
            f"{where} holds {REFUSED[key]}; only tensors and numbers can be converted",
            hint="replace it by tensors or by code before torch.export.export",
        )
    if name not in _hints(kind):
        raise BadModel(f"{where} has an unknown {kind.__name__}: {sorted(content)!a:.80}")
    return kind.create(**{name: _build(_hints(kind)[name], content[name], where, key)})


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, globalns=vars(schema))


def _text(value: Any, rule: str, where: str) -> str:
    if not isinstance(value, str) or rule not in TEXTS:
        raise BadModel(f"{where} has {value!a:.64} as {rule or 'a string'}")
    return TEXTS[rule](value, where)


def _plain(value: Any, kind: type, where: str) -> Any:
    if type(value) is not kind:
        raise BadModel(f"{where} has {value!a:.64} where a {kind.__name__} belongs")
    return value


def _number(kind: Any, value: Any, where: str) -> Any:
    if kind is float and value in ("Infinity", "-Infinity", "NaN"):
        return float(value)
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind is bool and type(value) is bool:
        return value
    if kind is not bool and kind is not float and type(value) is int and abs(value) < MAX_INTEGER:
        return _member(kind, value, where) if issubclass(kind, IntEnum) else value
    raise BadModel(f"{where} has {value!a:.64} where a {kind.__name__} belongs")


def _member(kind: type[IntEnum], value: int, where: str) -> IntEnum:
    try:
        return kind(value)
    except ValueError:
        raise BadModel(f"{where} has the unknown {kind.__name__} {value}") from None


def _graphs(graph: schema.Graph) -> Iterator[schema.Graph]:
    """The graph and those that its nodes take as arguments."""
    yield graph
    for node in graph.nodes:
        for given in node.inputs:
            if given.arg.type == "as_graph":
                yield from _graphs(given.arg.value.graph)


def _check_inference(nodes: list[schema.Node]) -> None:
    """In training mode batch normalization would use the batch, and dropout drop.

    Raises:
        Unsupported: the program was exported in training mode.
    """
    for node in nodes:
        for given in node.inputs:
            if given.name in ("training", "train") and given.arg.value is True:
                raise Unsupported(
                    f"the program was exported in training mode: {node.target.removeprefix('torch.ops.')} trains",
                    layer=node.name or "",
                    hint="call model.eval() before torch.export.export",
                )
