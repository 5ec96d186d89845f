"""What to try next, said so that it can be done: a change to one step of the recipe that ran."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from modelpress.spec import recipe
from modelpress.spec.recipe import Recipe


class Advice(BaseModel):
    """A change to the recipe, and what was measured that speaks for it."""

    model_config = ConfigDict(frozen=True)

    step: int = Field(description="Index of the step in the recipe that it is about.")
    text: str = Field(description="What was seen, and what may help.")
    put: Literal["set", "instead", "before", "after", "remove"] = Field(
        description="'set': the fragment's fields in that step. 'instead', 'before', 'after': the fragment is a step, in the place of that "
        "step or beside it. 'remove': the recipe without that step."
    )
    fragment: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the step, or a whole step."
    )


def apply(asked: Recipe, advice: Advice) -> Recipe:
    """The recipe as the advice would have it.

    Raises:
        Refused: it is no recipe then.
    """
    steps: list[Any] = [
        {"kind": step.kind, **step.model_dump(mode="json", exclude_defaults=True)}
        for step in asked.steps
    ]
    at = advice.step
    match advice.put:
        case "set":
            steps[at] = {**steps[at], **advice.fragment}
        case "instead":
            steps[at] = advice.fragment
        case "before":
            steps.insert(at, advice.fragment)
        case "after":
            steps.insert(at + 1, advice.fragment)
        case "remove":
            del steps[at]
    return recipe.parse({"name": asked.name, "steps": steps})
