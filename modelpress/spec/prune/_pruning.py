"""What steps that prune have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

from pydantic import Field, model_validator

from modelpress.spec.distill import Recover, _teaching
from modelpress.spec.prune._controls import Controls
from modelpress.spec.step import FineTune, Step


class Pruning(Step):
    """A step whose result can be compared with its shape, trained from new weights."""

    controls: Controls | None = Field(
        default=None,
        description="Networks of the same shape trained from new weights, to be seen beside the result.",
    )

    @property
    @abstractmethod
    def trained_epochs(self) -> int:
        """Epochs that the step trains its network for, in all rounds."""

    @property
    @abstractmethod
    def control_training(self) -> FineTune | None:
        """How controls are trained where they do not say; null where there is no training to compare them with."""


class PruningInRounds(Pruning):
    """A step that prunes, fine-tunes what is left, and prunes again."""

    rounds: int = Field(
        default=1,
        ge=1,
        le=100,
        description="Rounds of prune and fine-tune on the way to the target.",
    )
    fine_tune: FineTune | None = Field(
        default=None, description="Training after each round; null prunes once and trains nothing."
    )
    recover: Recover | None = Field(
        default=None,
        description="What fine_tune goes by: teachers, such as the uploaded model; null goes by labels.",
    )
    controls: Controls | None = Field(
        default=None,
        description="Networks of the same shape trained from new weights, to be seen beside the result; needs fine_tune.",
    )

    @property
    def trained_epochs(self) -> int:
        return self.rounds * self.fine_tune.epochs if self.fine_tune is not None else 0

    @property
    def control_training(self) -> FineTune | None:
        return self.fine_tune

    @property
    def trains_by_labels(self) -> bool:
        """Whether fine-tuning or controls read labels."""
        return self.controls is not None or _teaching.needs_labels(self.fine_tune, self.recover)

    @property
    def needs_models(self) -> tuple[str, ...]:
        return _teaching.roles(self.recover)

    @model_validator(mode="after")
    def _rounds_train(self) -> Self:
        if self.rounds > 1 and self.fine_tune is None:
            raise ValueError(
                f"rounds is {self.rounds} but fine_tune is null: rounds without training equal one round; "
                "set fine_tune or rounds = 1"
            )
        return self

    @model_validator(mode="after")
    def _recovery_trains(self) -> Self:
        _teaching.check_trains(self.fine_tune, self.recover)
        return self

    @model_validator(mode="after")
    def _controls_have_a_peer(self) -> Self:
        if self.controls is not None and self.fine_tune is None:
            raise ValueError(
                "controls are compared with the fine-tuned network, but fine_tune is null: set fine_tune, or leave controls out"
            )
        return self
