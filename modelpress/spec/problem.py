"""What is wrong with a request: a reason a person can read and a JSON pointer a program can follow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

MAX_PROBLEMS = 50

_OWN_WORDS = "Value error, "
"""What pydantic puts before the words of a validator of ours."""


class Problem(BaseModel):
    """One defect of a request body."""

    model_config = ConfigDict(frozen=True)

    pointer: str = Field(
        description="JSON pointer (RFC 6901) to the offending value, '' for the whole body."
    )
    code: str = Field(
        description="Stable machine-readable name of the defect, such as 'wrong_order'."
    )
    reason: str = Field(description="What is wrong, with the value seen and the limit.")
    hint: str = Field(default="", description="The way out, where there is one.")


class Refused(ValueError):
    """A request that cannot be accepted; carries every problem found, not only the first."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{p.pointer or '/'}: {p.reason}" for p in problems))
        self.problems = problems


def from_validation(error: ValidationError, *, under: str = "") -> list[Problem]:
    """Turns pydantic's errors into problems, their pointers below `under`; at most `MAX_PROBLEMS`."""
    return from_details(error.errors(include_url=False, include_context=False), under=under)


def from_details(details: Sequence[ErrorDetails], *, under: str = "") -> list[Problem]:
    """The same, from what pydantic's `errors()` lists."""
    problems = [
        Problem(
            pointer=under + _pointer(d["loc"]),
            code=d["type"],
            reason=_reason(d["msg"], d.get("input")),
        )
        for d in details[:MAX_PROBLEMS]
    ]
    return [p for p in problems if not _follows_from_another(p, problems)]


def _follows_from_another(problem: Problem, problems: list[Problem]) -> bool:
    """A list whose only element is invalid is also reported as empty: the element's own problem says it all."""
    inside = problem.pointer + "/"
    return problem.code == "too_short" and any(p.pointer.startswith(inside) for p in problems)


def _pointer(location: tuple[int | str, ...]) -> str:
    parts = [p for before, p in pairwise((None, *location)) if not _is_union_tag(before, p)]
    return "".join("/" + str(p).replace("~", "~0").replace("/", "~1") for p in parts)


def _is_union_tag(before: int | str | None, part: int | str | None) -> bool:
    """Pydantic names a step's kind ('prune.magnitude') after its index in the location; JSON has no such level."""
    return isinstance(before, int) and isinstance(part, str) and "." in part


def _reason(message: str, value: object) -> str:
    message = message.removeprefix(_OWN_WORDS)
    seen = repr(value)
    if isinstance(value, dict | list) or len(seen) > 80:
        return message
    return f"{message} (seen: {seen})"
