"""Who teaches a network, and how it listens: what `distill.*` and every step that trains have in common."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelpress.spec.step import FineTune, Role

SOURCE = "source"
"""The role of the uploaded model, which every job has."""

WITH_LABELS = 0.9
"""The teachers' share of the loss where there are labels and nobody says another."""


OPTIONS_OF_DKD = ("target_weight", "others_weight", "warm_up")
"""Fields that one variant alone has."""


class Teacher(BaseModel):
    """A model whose answers are learned."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Role = Field(
        default=SOURCE,
        description="'source' for the uploaded model, or the role of another model of the job.",
    )
    weight: float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        description="How much it counts beside the other teachers.",
    )


class Augment(BaseModel):
    """How samples are varied, in each epoch anew; the student and its teachers see the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shift: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Images move by up to so many pixels along each axis; their edge fills what becomes free.",
    )
    flip: bool = Field(
        default=False, description="Images are mirrored left to right, half of the time."
    )
    mixup: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="Each sample is mixed with another of its batch, at shares drawn from Beta(mixup, mixup).",
    )

    @model_validator(mode="after")
    def _varies_something(self) -> Self:
        if not self.shift and not self.flip and self.mixup is None:
            raise ValueError(
                "augment varies nothing: set shift, flip or mixup, or leave augment out"
            )
        return self


class Distill(BaseModel):
    """A loss that compares a network's answers with those of its teachers.

    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network (arXiv 1503.02531).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    teachers: tuple[Teacher, ...] = Field(
        default=(Teacher(),),
        min_length=1,
        max_length=16,
        description="Whose answers are learned; of several, their mean.",
    )
    mean: Literal["arithmetic", "geometric"] = Field(
        default="arithmetic",
        description="Of several teachers: the mean of their softened probabilities, or of their class scores.",
    )
    temperature: float = Field(
        default=4.0,
        gt=0,
        le=1000,
        description="What class scores are divided by before they are compared: high ones show what teachers think of wrong classes.",
    )
    alpha: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of the teachers in the loss; the rest is that of the labels. Null is 0.9 where there are labels, and 1 where "
        "there are none: the teachers' word is then taken, right or wrong.",
    )
    variant: Literal["kd", "dkd"] = Field(
        default="kd",
        description="Compare whole distributions (kd), or the right class and the others apart (dkd), whose published balance is alpha 0.5.",
    )
    target_weight: float = Field(
        default=1.0, ge=0, le=100, description="With dkd: weight of the right class's part."
    )
    others_weight: float = Field(
        default=8.0, ge=0, le=100, description="With dkd: weight of the part of the other classes."
    )
    warm_up: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="With dkd: share of the training over which the teachers' part of the loss rises from 0.",
    )
    standardize: bool = Field(
        default=False,
        description="Compare class scores minus their mean, over their deviation: their order and distances, whatever their size.",
    )
    augment: Augment | None = Field(
        default=None, description="How samples are varied; null leaves them as they are."
    )

    @property
    def learns_labels(self) -> bool:
        """Whether it can't do without labels."""
        return self.alpha is not None and self.alpha < 1

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of other models that teach."""
        return tuple(dict.fromkeys(t.role for t in self.teachers if t.role != SOURCE))

    @model_validator(mode="after")
    def _teachers_differ(self) -> Self:
        named = [teacher.role for teacher in self.teachers]
        twice = sorted({role for role in named if named.count(role) > 1})
        if twice:
            raise ValueError(
                f"teacher '{twice[0]}' is named {named.count(twice[0])} times: name it once, with a larger weight"
            )
        return self

    @model_validator(mode="after")
    def _options_have_their_variant(self) -> Self:
        fields = Distill.model_fields
        for option in OPTIONS_OF_DKD:
            is_given = getattr(self, option) != fields[option].default
            if is_given and self.variant != "dkd":
                raise ValueError(
                    f"{option} is of variant 'dkd', but variant is '{self.variant}': leave {option} out, or set variant to 'dkd'"
                )
        return self


class Recover(BaseModel):
    """What training after a change goes by, instead of labels alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    distill: Distill | None = Field(
        default=None,
        description="Learn from teachers, by default from the uploaded model; null learns from labels alone.",
    )


def needs_labels(training: FineTune | None, recover: Recover | None) -> bool:
    """Whether training (null: there is none) reads labels."""
    if training is None:
        return False
    taught = recover.distill if recover is not None else None
    return taught is None or taught.learns_labels


def roles(recover: Recover | None) -> tuple[str, ...]:
    """Roles of other models that teach during recovery."""
    return recover.distill.roles if recover is not None and recover.distill is not None else ()


def check_trains(training: FineTune | None, recover: Recover | None) -> None:
    """Checks that there is training that a teacher could teach in.

    Raises:
        ValueError: there is none.
    """
    if recover is not None and recover.distill is not None and training is None:
        raise ValueError(
            "recover says what training goes by, but fine_tune is null: set fine_tune, or leave recover out"
        )
