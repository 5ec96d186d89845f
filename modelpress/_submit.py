"""The body of a job request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from modelpress.spec.constraint import Constraint
from modelpress.spec.job import Images, Limits
from modelpress.spec.recipe import Recipe


def body(
    model: str,
    recipe: str | Recipe | Mapping[str, Any],
    *,
    train: str | None,
    eval_: str | None,
    sensitivity: str | None = None,
    models: Mapping[str, str] | None = None,
    images: Images | None = None,
    formats: Iterable[str] = (),
    constraints: Iterable[Constraint | Mapping[str, Any]] = (),
    limits: Limits | None = None,
    seed: int = 0,
    name: str = "",
) -> dict[str, Any]:
    """What POST /v1/jobs takes. The server judges it, so that a newer one may know more than this client."""
    data = _given(train=train, eval=eval_, images=images)
    required = {"model": model, "recipe": _plain(recipe), "data": data, "seed": seed, "name": name}
    return {
        **required,
        "constraints": [_plain(c) for c in constraints],
        **_given(limits=limits, models=models, formats=list(formats), sensitivity=sensitivity),
    }


def _given(**values: Any) -> dict[str, Any]:
    return {key: _plain(value) for key, value in values.items() if value}


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
