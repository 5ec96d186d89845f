"""What steps that put cheaper layers in the place of a network's own have in common."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelpress.spec.distill import Recover, _teaching
from modelpress.spec.step import FineTune, Step


class Target(BaseModel):
    """What the whole network may cost, as a fraction of what it costs. Exactly one of the two."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    macs: float | None = Field(default=None, gt=0, lt=1, description="Of its multiply-accumulates.")
    bytes: float | None = Field(
        default=None, gt=0, lt=1, description="Of the bytes of its weights."
    )

    @model_validator(mode="after")
    def _one_cost(self) -> Self:
        if (self.macs is None) == (self.bytes is None):
            seen = "neither" if self.macs is None else "both"
            raise ValueError(f"exactly one of macs and bytes is the target; {seen} is given")
        return self

    @property
    def fraction(self) -> float:
        """That of the one."""
        found = self.macs or self.bytes
        assert found is not None, "one is given"
        return found


class Rewriting(Step):
    """A step that rewrites layers and may then train what came of them."""

    target: Target | None = Field(
        default=None,
        description="Choose for each layer how far it goes, and whether, by what it costs the network, measured or known, so that the "
        "whole network keeps this. Needs data.",
    )
    samples: int = Field(
        default=256,
        ge=1,
        le=100_000,
        description="Training samples that measurements look at.",
    )
    layerwise: FineTune | None = Field(
        default=None,
        description="Training of the new layers alone, each to give what the layer before it gave; needs data, but no labels. "
        "Null: none.",
    )
    fine_tune: FineTune | None = Field(
        default=None, description="Training of the whole network afterwards; null trains nothing."
    )
    recover: Recover | None = Field(
        default=None,
        description="What fine_tune goes by: teachers, such as the uploaded model; null goes by labels.",
    )

    @property
    def measures(self) -> bool:
        """Whether training samples are looked at before anything is trained."""
        return self.target is not None

    @property
    def needs_data(self) -> bool:
        trains = self.layerwise is not None or self.fine_tune is not None
        return trains or self.measures

    @property
    def needs_labels(self) -> bool:
        return _teaching.needs_labels(self.fine_tune, self.recover)

    @property
    def needs_models(self) -> tuple[str, ...]:
        return _teaching.roles(self.recover)

    @model_validator(mode="after")
    def _recovery_trains(self) -> Self:
        _teaching.check_trains(self.fine_tune, self.recover)
        return self

    @model_validator(mode="after")
    def _samples_are_looked_at(self) -> Self:
        is_given = self.samples != Rewriting.model_fields["samples"].default
        if is_given and not self.measures:
            raise ValueError(
                f"samples is {self.samples}, but nothing is measured on them: set target, or leave samples out"
            )
        return self
