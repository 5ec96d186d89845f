"""The limits of an ONNX file, checked over its bytes before any parser sees them.

Whatever passes here is small enough to parse: its size, nesting, nodes (after functions would be
inlined), names and tensors are bounded, tensors hold exactly the bytes they claim, and weights in
other files are in the model's own folder.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from workers.engine.errors import BadModel, Unsupported
from workers.engine.formats import expansion, tensor_limits, wire
from workers.engine.graph import ops

MAX_FILE_BYTES = 2**31 - 1
IR_VERSIONS = range(3, 15)
OPSETS = range(7, 29)
MAX_NODES = 50_000
MAX_FUNCTIONS = 256
MAX_SUBGRAPH_DEPTH = 4
MAX_TYPE_DEPTH = 4
MAX_VALUES = 800_000
"""Operands, results, initializers and described values together."""
MAX_NAME = 256
MAX_METADATA_BYTES = 2**16
MAX_GRAPH_METADATA_BYTES = 2**24
"""What exporters note of a graph grows with it, and is dropped at load."""

CONVERTED = frozenset(
    {"ai.onnx.ml::ArrayFeatureExtractor", "ai.onnx.ml::Scaler", "Upsample", "Scatter"}
)
"""Operators outside the table that loading rewrites to some inside it."""

_HINTS = {
    "ai.onnx.ml::ZipMap": "export without it: to_onnx(model, x, options={'zipmap': False})",
}

_NAMED = 20
"""How many unsupported operators an error names before it says 'and more'."""


@dataclass
class _Walk:
    """What is seen on the way through the file."""

    path: Path
    reader: wire.Reader
    functions: frozenset[str] = frozenset()
    unknown: Counter[str] = field(default_factory=Counter)
    nodes: int = 0
    values: int = 0


def check(path: Path) -> None:
    """Hold a file to the limits.

    Raises:
        BadModel: it is no ONNX file, or breaks a limit.
        Unsupported: it has operators, or types of tensors, that we do not know; all operators are named.
    """
    size = os.stat(path).st_size
    if size == 0:
        raise BadModel("the file is empty")
    if size > MAX_FILE_BYTES:
        raise BadModel(
            f"the file has {size:,} bytes; the limit is {MAX_FILE_BYTES:,}",
            hint="keep the weights in a second file next to the model",
        )
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _check_model(_Walk(path, wire.Reader()), memoryview(mapped))


def _check_model(walk: _Walk, view: memoryview) -> None:
    model = walk.reader.read(view)
    graph = model.message(7)
    ir_version = model.number(1)
    if graph is None or ir_version not in IR_VERSIONS:
        raise BadModel(
            f"the file is no ONNX model: IR version {ir_version}, "
            f"{'no graph' if graph is None else 'a graph'}; versions 3 to {IR_VERSIONS[-1]} are read",
            hint="upload the .onnx file that your framework's exporter writes",
        )
    _check_opset(walk, model.many(8))
    _check_metadata(model.many(14), "the model")
    functions = _functions(walk, model.many(25))
    walk.functions = frozenset(functions)
    calls = _check_graph(walk, graph, 0)
    expansion.check(calls, functions, MAX_NODES)
    _raise_unknown(walk.unknown)


def _check_opset(walk: _Walk, imports: Iterable[memoryview]) -> None:
    for view in imports:
        message = walk.reader.read(view)
        domain, version = message.text(1), message.number(2)
        check_name(domain, "a domain")
        if domain in ("", "ai.onnx") and version not in OPSETS:
            raise BadModel(
                f"opset {version} is not supported; {OPSETS[0]} to {OPSETS[-1]} are",
                hint="export the model again with a newer opset" if version < OPSETS[0] else "",
            )


def _functions(walk: _Walk, views: list[memoryview]) -> dict[str, Counter[str]]:
    """What each function calls, by its name."""
    if len(views) > MAX_FUNCTIONS:
        raise BadModel(f"the model has {len(views):,} functions; the limit is {MAX_FUNCTIONS}")
    messages = [walk.reader.read(view) for view in views]
    names = [_overloaded(m.text(10), m.text(1), m.text(13)) for m in messages]
    if len(set(names)) != len(names):
        raise BadModel("two functions of the model have the same name")
    walk.functions = frozenset(names)
    functions = {}
    for name, message in zip(names, messages, strict=True):
        check_name(name, "a function")
        _check_metadata(message.many(14), f"function {name}")
        _names(message.many(4) + message.many(5) + message.many(6))
        for attribute in message.many(11):
            _check_attribute(walk, attribute, 0, Counter())
        functions[name] = _check_nodes(walk, message.many(7), 0, set())
    return functions


def _check_graph(walk: _Walk, view: memoryview, depth: int) -> Counter[str]:
    """Check a graph and those inside it; answers how often each operator or function occurs."""
    if depth > MAX_SUBGRAPH_DEPTH:
        raise BadModel(f"graphs are nested more than {MAX_SUBGRAPH_DEPTH} deep")
    graph = walk.reader.read(view)
    if graph.many(15):
        raise Unsupported("sparse initializers are not supported")
    check_name(graph.text(2), "a graph")
    _check_metadata(graph.many(16), "a graph", MAX_GRAPH_METADATA_BYTES)
    made: set[str] = set()
    for tensor in graph.many(5):
        _make(tensor_limits.check(walk.reader, tensor, walk.path), made)
    infos = graph.many(11) + graph.many(12) + graph.many(13)
    _count_values(walk, len(infos) + len(graph.many(5)))
    for info in infos:
        _check_value_info(walk, info)
    return _check_nodes(walk, graph.many(1), depth, made)


def _check_nodes(walk: _Walk, views: list[memoryview], depth: int, made: set[str]) -> Counter[str]:
    """Check nodes in one scope, where the values in `made` exist already and more are added."""
    walk.nodes += len(views)
    if walk.nodes > MAX_NODES:
        raise BadModel(f"the model has more than {MAX_NODES:,} nodes")
    calls: Counter[str] = Counter()
    for view in views:
        node = walk.reader.read(view)
        _check_node(walk, node, depth, calls)
        for output in _names(node.many(2)):
            _make(output, made)
    return calls


def _make(name: str, made: set[str]) -> None:
    if name in made:
        raise BadModel(f"the value '{name}' is made twice", layer=name)
    made.add(name)


def _check_node(walk: _Walk, node: wire.Message, depth: int, calls: Counter[str]) -> None:
    name, op_type, domain = node.text(3), node.text(4), node.text(7)
    check_name(name, "a node")
    for text in (op_type, domain, node.text(8)):
        check_name(text, f"node '{name}'")
    _check_metadata(node.many(9), f"node '{name}'")
    _count_values(walk, len(node.many(1)) + len(node.many(2)))
    _names(node.many(1))
    called = _overloaded(domain, op_type, node.text(8))
    calls[called] += 1
    known = ops.key(domain, op_type)
    if called not in walk.functions and known not in ops.TABLE and known not in CONVERTED:
        walk.unknown[known] += 1
    for attribute in node.many(5):
        _check_attribute(walk, attribute, depth, calls)


def _overloaded(domain: str, name: str, overload: str) -> str:
    domain = "" if domain == "ai.onnx" else domain
    return f"{domain}::{name}" + (f":{overload}" if overload else "")


def _check_attribute(walk: _Walk, view: memoryview, depth: int, calls: Counter[str]) -> None:
    attribute = walk.reader.read(view)
    check_name(attribute.text(1), "an attribute")
    if attribute.many(22) or attribute.many(23):
        raise Unsupported("sparse tensors are not supported")
    for tensor in attribute.either(5, 10):
        tensor_limits.check(walk.reader, tensor, walk.path)
    for graph in attribute.either(6, 11):
        calls.update(_check_graph(walk, graph, depth + 1))
    for type_ in attribute.either(14, 15):
        _check_type(walk, type_, 0)


def _check_value_info(walk: _Walk, view: memoryview) -> None:
    info = walk.reader.read(view)
    check_name(info.text(1), "a value")
    _check_metadata(info.many(4), f"value '{info.text(1)}'")
    if (type_ := info.message(2)) is not None:
        _check_type(walk, type_, 0)


def _check_type(walk: _Walk, view: memoryview, depth: int) -> None:
    if depth > MAX_TYPE_DEPTH:
        raise BadModel(f"a type is nested more than {MAX_TYPE_DEPTH} deep")
    type_ = walk.reader.read(view)
    for kind in (1, 8):
        tensor = type_.message(kind)
        shape = None if tensor is None else walk.reader.read(tensor).message(2)
        if shape is not None:
            _check_shape(walk, shape)
    for kind in (4, 9):
        inner = type_.message(kind)
        element = None if inner is None else walk.reader.read(inner).message(1)
        if element is not None:
            _check_type(walk, element, depth + 1)


def _check_shape(walk: _Walk, view: memoryview) -> None:
    dims = [walk.reader.read(dim) for dim in walk.reader.read(view).many(1)]
    if len(dims) > tensor_limits.MAX_RANK:
        raise BadModel(f"a value has {len(dims):,} axes; the limit is {tensor_limits.MAX_RANK}")
    for dim in dims:
        check_name(dim.text(2), "an axis")
        tensor_limits.check_size(dim.integers(1)[-1:] or [1], "a value")


def _check_metadata(entries: list[memoryview], owner: str, limit: int = MAX_METADATA_BYTES) -> None:
    total = sum(len(entry) for entry in entries)
    if total > limit:
        raise BadModel(f"{owner} has {total:,} bytes of metadata; the limit is {limit:,}")


def _names(views: list[memoryview]) -> list[str]:
    names = [wire.as_text(view) for view in views if len(view)]
    for name in names:
        check_name(name, "a value")
    return names


def check_name(name: str, owner: str) -> None:
    """Names end up in logs, reports and pages: they are short and printable.

    Raises:
        BadModel: this one is not.
    """
    if len(name) > MAX_NAME:
        raise BadModel(f"{owner} has a name of {len(name):,} characters; the limit is {MAX_NAME}")
    if not name.isprintable():
        raise BadModel(f"{owner} has a name with control characters: {name[:64]!a}")


def _count_values(walk: _Walk, count: int) -> None:
    walk.values += count
    if walk.values > MAX_VALUES:
        raise BadModel(f"the model has more than {MAX_VALUES:,} value names")


def _raise_unknown(unknown: Counter[str]) -> None:
    if not unknown:
        return
    names = sorted(unknown)
    shown = ", ".join(names[:_NAMED]) + (
        f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    )
    raise Unsupported(
        f"unsupported operators: {shown}",
        layer=names[0],
        hint=_HINTS.get(names[0], "export the model with standard ONNX operators"),
    )
