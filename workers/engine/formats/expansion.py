"""How many nodes a model has once its functions are inlined, found without inlining them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from workers.engine.errors import BadModel

MAX_DEPTH = 16
"""Functions that call functions that call functions."""


def check(calls: Counter[str], functions: Mapping[str, Counter[str]], max_nodes: int) -> None:
    """Count the expanded nodes by a memoised product.

    Args:
        calls: How often the main graph has each operator or function.
        functions: The same for each function's body.
        max_nodes: The limit.

    Raises:
        BadModel: a function calls itself, calls nest too deep, or the nodes would be too many.
    """
    sizes: dict[str, int] = {}
    total = sum(times * _size(name, functions, sizes, ()) for name, times in calls.items())
    if total > max_nodes:
        raise BadModel(
            f"inlining its functions would give the model {total:,} nodes; the limit is {max_nodes:,}"
        )


def _size(
    name: str,
    functions: Mapping[str, Counter[str]],
    sizes: dict[str, int],
    callers: tuple[str, ...],
) -> int:
    """Nodes that one call becomes."""
    if name not in functions:
        return 1
    if name in callers:
        raise BadModel(f"function {name} calls itself", layer=name)
    if len(callers) >= MAX_DEPTH:
        raise BadModel(f"functions call each other more than {MAX_DEPTH} deep", layer=name)
    if name not in sizes:
        inside = functions[name].items()
        sizes[name] = sum(
            times * _size(called, functions, sizes, (*callers, name)) for called, times in inside
        )
    return sizes[name]
