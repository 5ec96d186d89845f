"""Who learns."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelpress.spec.architecture import Architecture
from modelpress.spec.step import FineTune, Role


class DistillTraining(FineTune):
    """How the student is trained. Needs labels only where they have a share in the loss."""

    epochs: int = Field(default=10, ge=1, le=10_000, description="Passes over the train split.")


class Student(BaseModel):
    """Another network than the one that earlier steps left, which takes its place; or that one with new weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Role | None = Field(
        default=None, description="Role of another model of the job, which becomes the student."
    )
    architecture: Architecture | None = Field(
        default=None,
        description="A small network of a paper, with new weights, for images and classes as the uploaded model has them.",
    )
    width: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="A copy of the uploaded model with this share of the channels of each layer.",
    )
    depth: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="A copy of the uploaded model with this share of the blocks that can be taken out, as their input and output have "
        "one shape. With width: both.",
    )
    weights: Literal["keep", "fresh"] = Field(
        default="keep",
        description="The student begins with the weights that it has, or with new random ones.",
    )

    @property
    def is_copy(self) -> bool:
        """Whether it is made of the uploaded model."""
        return self.width is not None or self.depth is not None

    @model_validator(mode="after")
    def _is_one_network(self) -> Self:
        given = {
            "role": self.role is not None,
            "architecture": self.architecture is not None,
            "width or depth": self.is_copy,
        }
        named = [name for name, is_given in given.items() if is_given]
        if len(named) > 1:
            raise ValueError(
                f"a student is one network, but {' and '.join(named)} are given: leave out all but one"
            )
        if not named and self.weights == "keep":
            raise ValueError(
                "a student without a role, an architecture, a width, a depth or fresh weights is the model as it is: leave student out"
            )
        return self
