"""docker-compose.yml as a table of services, with its variables filled in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from tests import servers

FILE = servers.ROOT / "docker-compose.yml"
_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?:(:[-?])([^}]*))?\}")


@dataclass(frozen=True)
class Service:
    """One service, as Compose would run it."""

    name: str
    spec: dict[str, Any]

    @property
    def command(self) -> list[str]:
        words: list[str] = self.spec["command"]
        return words

    @property
    def health(self) -> list[str]:
        """The command of its health check."""
        test: list[str] = self.spec["healthcheck"]["test"]
        assert test[0] == "CMD"
        return test[1:]

    @property
    def environment(self) -> dict[str, str]:
        return dict(self.spec.get("environment", {}))


def raw() -> dict[str, Any]:
    """The file, its anchors resolved and its variables as they are written."""
    document: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return document


def services(variables: dict[str, str]) -> dict[str, Service]:
    """Every service, with `variables` in the place of what .env holds."""
    filled = _fill(raw(), variables)
    return {name: Service(name, spec) for name, spec in filled["services"].items()}


def required() -> set[str]:
    """The variables that have no default: Compose refuses to start without them."""
    return {name for name, kind, _ in _VARIABLE.findall(FILE.read_text()) if kind == ":?"}


def optional() -> set[str]:
    """The variables that have a default."""
    return {name for name, kind, _ in _VARIABLE.findall(FILE.read_text()) if kind == ":-"}


def _fill(value: Any, variables: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {k: _fill(v, variables) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, variables) for v in value]
    if isinstance(value, str):
        text = _VARIABLE.sub(lambda m: variables.get(m[1]) or m[3] or "", value)
        return text.replace("$$", "$")
    return value
