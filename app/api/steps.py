"""The catalogue: every kind of step that a recipe may contain, and the recipes that have a name."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Self

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from app import errors
from app.api import pages
from modelpress.spec.named import NAMED
from modelpress.spec.recipe import STEPS, Recipe
from modelpress.spec.step import Step

router = APIRouter(tags=["steps"])


class Needs(BaseModel):
    """What a step with its default options reads; other options may need more or less."""

    data: bool = Field(description="Whether it reads samples.")
    labels: bool = Field(description="Whether it reads labels.")


class StepBody(BaseModel):
    """A kind of step."""

    model_config = ConfigDict(serialize_by_alias=True)

    kind: str = Field(description="What a recipe calls it, such as 'prune.magnitude'.")
    family: str = Field(description="The part of the kind before the dot.")
    doc: str = Field(description="What it does.")
    paper: str = Field(description="Where the method comes from.")
    schema_: dict[str, Any] = Field(alias="schema", description="JSON Schema of its options.")
    defaults: dict[str, Any] = Field(description="Options that may be left out, and their values.")
    needs: Needs = Field(description="What it reads with the defaults.")

    @classmethod
    def of(cls, step: type[Step]) -> Self:
        """The description of a class of steps."""
        kind = step.model_fields["kind"].default
        bare = step.model_construct(kind=kind)
        return cls(
            kind=kind,
            family=kind.partition(".")[0],
            doc=inspect.getdoc(step) or "",
            paper=step.paper,
            schema=step.model_json_schema(),
            defaults=bare.model_dump(mode="json", exclude={"kind"}),
            needs=Needs(data=bare.needs_data, labels=bare.needs_labels),
        )


class StepPage(BaseModel):
    """All kinds of steps."""

    items: list[StepBody] = Field(description="The kinds, by name.")
    next_cursor: str | None = pages.WHOLE


class RecipePage(BaseModel):
    """All recipes that have a name."""

    items: list[Recipe] = Field(description="The recipes; a job may ask for one by its name.")
    next_cursor: str | None = pages.WHOLE


@router.get("/steps")
def list_steps() -> StepPage:
    """Lists every kind of step that a recipe may contain, each with the JSON Schema of its options."""
    return StepPage(items=[StepBody.of(STEPS[kind]) for kind in sorted(STEPS)])


@router.get("/steps/{kind}")
def read_step(
    kind: Annotated[str, Path(max_length=64, description="A kind, such as 'quantize.int8'.")],
) -> StepBody:
    """Describes a kind of step."""
    if kind not in STEPS:
        raise errors.NotFound(
            f"there is no step {kind!r}", hint=f"the kinds are {', '.join(sorted(STEPS))}"
        )
    return StepBody.of(STEPS[kind])


@router.get("/recipes")
def list_recipes() -> RecipePage:
    """Lists the recipes that a job may ask for by name."""
    return RecipePage(items=list(NAMED.values()))
