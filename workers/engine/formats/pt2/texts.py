"""A rule for every string of an exported program. torch makes code, imports and evaluations of them."""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Iterator
from typing import Any

from workers.engine.errors import BadModel

MAX_TEXT = 256
MAX_EXPRESSION = 1024
MAX_EXPRESSION_NODES = 400
MAX_POWER = 4

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_PATH = re.compile(r"[A-Za-z0-9_-]{1,100}(\.[A-Za-z0-9_-]{1,100}){0,31}")
_SYMBOL = re.compile(r"[su]\d{1,6}")

_STRUCTURES = frozenset({"builtins.tuple", "builtins.list", "builtins.dict"})
_TUPLE = "builtins.tuple"

_FUNCTIONS = frozenset(
    {
        "FloorDiv", "ModularIndexing", "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv",
        "PowByNatural", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt", "ToFloat",
        "Identity", "Max", "Min", "Integer", "Add", "Mul",
    }
)  # fmt: skip
_ASSUMPTIONS = frozenset({"positive", "nonnegative", "integer", "zero"})
_PLAIN = (
    ast.Expression, ast.Load, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod,
    ast.Pow, ast.USub, ast.Eq, ast.NotEq, ast.Gt, ast.GtE, ast.Lt, ast.LtE,
)  # fmt: skip


def identifier(text: str, where: str) -> str:
    """A name of a value; empty where there is none. It becomes a variable of generated code.

    Raises:
        BadModel: it is no plain name.
    """
    if text and (not _IDENTIFIER.fullmatch(text) or keyword.iskeyword(text)):
        raise BadModel(f"{where} has the name {text[:64]!a}, which is no plain identifier")
    return text


def argument(text: str, where: str) -> str:
    """A name of an operator's argument, which may be a keyword of Python.

    Raises:
        BadModel: it is no plain name.
    """
    return text if keyword.iskeyword(text) else identifier(text, where)


def path(text: str, where: str) -> str:
    """A dotted name of a parameter, which becomes attributes of generated code.

    Raises:
        BadModel: it has other characters than letters, digits, '_' and '-'.
    """
    if not _PATH.fullmatch(text):
        raise BadModel(
            f"{where} has the name {text[:64]!a}; letters, digits, '_', '-' and dots are allowed",
            hint="rename the module or parameter before torch.export.export",
        )
    return text


def symbol(text: str, where: str) -> str:
    """A name that torch gives to a free size: s77 or u0.

    Raises:
        BadModel: it is another.
    """
    if not _SYMBOL.fullmatch(text):
        raise BadModel(f"{where} names the size {text[:64]!a}; torch names them s0 or u0")
    return text


def constant(text: str, where: str) -> str:
    """A string given to an operator: 'floor', 'bij,bjk->bik'.

    Raises:
        BadModel: it is long or has control characters.
    """
    if len(text) > MAX_TEXT or not text.isprintable():
        raise BadModel(f"{where} has a text of {len(text):,} characters, or control characters")
    return text


def device(text: str, where: str) -> str:
    """Whatever device the model was exported on, it is converted on the CPU."""
    return "cpu"


def empty(text: str, where: str) -> str:
    """What nothing here needs is left out."""
    return ""


def structure(text: str, where: str) -> str:
    """How inputs or outputs are nested, with every other container taken for a tuple: importing its class runs its module.

    Raises:
        BadModel: it is malformed.
    """
    try:
        version, tree = json.loads(text)
        return json.dumps([int(version), _node(tree)])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadModel(f"{where} is no structure of inputs or outputs: {error}") from error


def _node(tree: dict[str, Any]) -> dict[str, Any]:
    children = [_node(child) for child in tree["children_spec"]]
    kind = tree["type"]
    if kind is None:
        return {"type": None, "context": None, "children_spec": []}
    if kind not in _STRUCTURES:
        return {"type": _TUPLE, "context": "null", "children_spec": children}
    context = "null"
    if kind == "builtins.dict":
        keys = json.loads(tree["context"])
        if len(keys) != len(children) or not all(isinstance(key, str | int) for key in keys):
            raise ValueError("the keys of a dict are not one for each value")
        context = json.dumps(keys)
    return {"type": kind, "context": context, "children_spec": children}


def expression(text: str, where: str) -> str:
    """Arithmetic on sizes, as 's77//2 + 1'. torch evaluates it as Python.

    Raises:
        BadModel: it is anything else, or too long.
    """
    if len(text) > MAX_EXPRESSION:
        raise BadModel(f"{where} has an expression of {len(text):,} characters")
    try:
        nodes = list(_walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadModel(f"{where} has a size {text[:64]!a}, which is no expression") from error
    if len(nodes) > MAX_EXPRESSION_NODES or not all(map(_is_arithmetic, nodes)):
        raise BadModel(f"{where} has a size {text[:64]!a}, which is more than arithmetic")
    return text


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes, but not those of a Symbol('s77', positive=True) and not the name of a function that is known."""
    yield node
    if isinstance(node, ast.Call) and _is_known(node.func):
        children: list[ast.AST] = [] if _is_symbol(node) else [*node.args, *node.keywords]
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from _walk(child)


def _is_known(function: ast.expr) -> bool:
    return isinstance(function, ast.Name) and function.id in {*_FUNCTIONS, "Symbol"}


def _is_arithmetic(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value):
            return type(value) is bool or (type(value) is int and abs(value) < 1 << 62)
        case ast.Name(name):
            return _SYMBOL.fullmatch(name) is not None
        case ast.Call(ast.Name("Symbol")):
            return _is_symbol(node)
        case ast.Call(ast.Name("PowByNatural"), [base, exponent], []):
            return _is_power(base, exponent)
        case ast.Call(ast.Name(name), _, []):
            return name in _FUNCTIONS - {"PowByNatural"}
        case ast.BinOp(base, ast.Pow(), exponent):
            return _is_power(base, exponent)
    return isinstance(node, _PLAIN)


def _is_power(base: ast.expr, exponent: ast.expr) -> bool:
    """Of a size or a number, small: powers of powers would compute for ever."""
    small = isinstance(exponent, ast.Constant) and exponent.value in range(MAX_POWER + 1)
    return small and (
        isinstance(base, ast.Name | ast.Constant)
        or (isinstance(base, ast.Call) and _is_symbol(base))
    )


def _is_symbol(node: ast.Call) -> bool:
    match node:
        case ast.Call(ast.Name("Symbol"), [ast.Constant(str(name))], assumptions):
            return _SYMBOL.fullmatch(name) is not None and all(
                a.arg in _ASSUMPTIONS
                and isinstance(a.value, ast.Constant)
                and type(a.value.value) is bool
                for a in assumptions
            )
    return False
