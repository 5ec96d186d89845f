"""A network that learns what happens inside others."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelpress.spec.distill.logits import Distilling

Method = Literal["hint", "attention", "relational"]

WEIGHTS: dict[Method, float] = {"hint": 1.0, "attention": 10.0, "relational": 25.0}
"""Where a step says none."""


class LayerPair(BaseModel):
    """A place in the student that learns from a place in the teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    student: str = Field(
        min_length=1, max_length=256, description="Name of a node or value of the student."
    )
    teacher: str = Field(
        min_length=1, max_length=256, description="Name of a node or value of the teacher."
    )


class DistillFeatures(Distilling):
    """Trains a student on values inside its teacher, beside class scores and labels."""

    paper: ClassVar[str] = (
        "hint: Romero et al.: FitNets (arXiv 1412.6550); attention: Zagoruyko, Komodakis: Paying More Attention to Attention "
        "(arXiv 1612.03928); relational: Park, Kim, Lu, Cho: Relational Knowledge Distillation (arXiv 1904.05068)"
    )

    kind: Literal["distill.features"] = "distill.features"
    method: Method = Field(
        default="hint",
        description="What has to agree: the values themselves, through a layer that fits widths and is thrown away (hint); where they are "
        "large (attention); or distances and angles between samples (relational).",
    )
    pairs: tuple[LayerPair, ...] = Field(
        default=(),
        max_length=64,
        description="Places that learn from each other; none: the last ones of each resolution that both networks have.",
    )
    weight: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Weight of the inner values beside the loss of the answers; null is 1 for hints, 10 for attention and 25 for relations.",
    )

    @property
    def share(self) -> float:
        """The weight, where none is given that of the method."""
        return WEIGHTS[self.method] if self.weight is None else self.weight

    @model_validator(mode="after")
    def _one_teacher(self) -> Self:
        if len(self.teachers) > 1:
            raise ValueError(
                f"{len(self.teachers)} teachers are named, but places are paired with those of one: name one, or use distill.logits"
            )
        return self
