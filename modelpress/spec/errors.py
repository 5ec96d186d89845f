"""The body of every error answer: problem+json (RFC 9457)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from modelpress.spec.problem import Problem


class ErrorBody(BaseModel):
    """What went wrong with a request."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(default="about:blank", description="URI of the kind of error.")
    title: str = Field(description="The HTTP status in words.")
    status: int = Field(description="The HTTP status.")
    code: str = Field(description="Stable machine-readable name, such as 'too_large'.")
    detail: str = Field(description="What was wrong, the value seen and the limit.")
    hint: str = Field(default="", description="The way out.")
    problems: list[Problem] = Field(
        default_factory=list, description="Each defect of the body, with its JSON pointer."
    )
