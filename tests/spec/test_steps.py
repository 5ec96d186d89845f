"""Every step, whatever it does: named as its path, described for people, usable from its schema alone."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from modelpress.spec import recipe
from modelpress.spec.step import Step

KINDS = sorted(recipe.STEPS)
REQUIRED: dict[str, dict[str, Any]] = {
    "prune.magnitude": {"sparsity": 0.5},
    "prune.channels": {"fraction": 0.5},
    "prune.lottery": {"rounds": 2},
    "rewrite.low_rank": {"ratio": 2},
}


def schema(kind: str) -> dict[str, Any]:
    return recipe.STEPS[kind].model_json_schema()


def nested(cls: type[BaseModel]) -> list[type[BaseModel]]:
    """The class and every model among the types of its fields."""
    found = [cls]
    for field in cls.model_fields.values():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += nested(kind)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_kind_is_family_and_method(kind: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*\.[a-z][a-z0-9_]*", kind)


@pytest.mark.parametrize("kind", KINDS)
def test_step_lives_in_the_file_of_its_family(kind: str) -> None:
    family = f"modelpress.spec.{kind.split('.')[0]}"
    assert recipe.STEPS[kind].__module__ in (family, f"modelpress.spec.{kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_step_says_what_it_does_and_where_it_comes_from(kind: str) -> None:
    step = recipe.STEPS[kind]
    assert step.__doc__
    assert step.__doc__.endswith(".")
    assert re.search(r"arXiv \d{4}\.\d{4,5}", step.paper)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_described_as_a_sentence(kind: str) -> None:
    for cls in nested(recipe.STEPS[kind]):
        for name, field in cls.model_fields.items():
            if name != "kind":
                assert field.description, f"{cls.__name__}.{name}"
                assert field.description.endswith("."), f"{cls.__name__}.{name}"


@pytest.mark.parametrize("kind", KINDS)
def test_schema_is_valid_and_accepts_the_defaults(kind: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(kind))
    body = {"kind": kind, **REQUIRED.get(kind, {})}
    jsonschema.validate(body, schema(kind))
    jsonschema.validate(recipe.STEPS[kind](**body).model_dump(mode="json"), schema(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_schema_refuses_what_the_step_refuses(kind: str) -> None:
    body = {"kind": kind, **REQUIRED.get(kind, {}), "unheard_of": 1}
    with pytest.raises(jsonschema.ValidationError, match="unheard_of"):
        jsonschema.validate(body, schema(kind))


def leaves(cls: type[Step]) -> set[type[Step]]:
    """The classes below one that have none below them: what is between only holds what they share."""
    below = cls.__subclasses__()
    return {leaf for each in below for leaf in leaves(each)} if below else {cls}


def test_registry_holds_every_step_class() -> None:
    assert set(recipe.STEPS.values()) == leaves(Step)


def test_schema_of_a_recipe_tells_the_kinds_apart() -> None:
    items = recipe.Recipe.model_json_schema()["properties"]["steps"]["items"]
    assert sorted(items["discriminator"]["mapping"]) == KINDS
