"""Options of their own for some layers: the first pattern that matches one decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from workers.engine.errors import NothingChanged
from workers.engine.graph.match import Layer

Option = TypeVar("Option")
_LISTED = 32


def of(
    layers: Mapping[str, Layer], overrides: Iterable[tuple[str, Option]], what: str = "quantized"
) -> dict[str, Option]:
    """The option of each layer that has its own, by weight; `overrides` are patterns of weights or nodes.

    `what` becomes of the layers, for the message.

    Raises:
        NothingChanged: an override is the first match of no layer.
    """
    own: dict[str, Option] = {}
    for pattern, option in overrides:
        matched = {name for name, layer in layers.items() if _matches(pattern, name, layer)}
        if not matched - set(own):
            raise NothingChanged(_without_effect(pattern, matched, layers, what))
        own.update({name: option for name in matched if name not in own})
    return {name: own[name] for name in layers if name in own}


def _matches(pattern: str, name: str, layer: Layer) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(layer.name, pattern)


def _without_effect(pattern: str, matched: set[str], layers: Mapping[str, Layer], what: str) -> str:
    if matched:
        return f"override '{pattern}' has no effect: earlier overrides match all its layers already"
    names = ", ".join(f"'{name}'" for name in list(layers)[:_LISTED])
    more = f" and {len(layers) - _LISTED} more" if len(layers) > _LISTED else ""
    return f"override '{pattern}' matches no layer that is {what}; there are {names}{more}"
