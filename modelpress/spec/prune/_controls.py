"""Networks of the pruned shape that are trained from new weights, to be seen beside the fine-tuned one."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Controls(BaseModel):
    """The pruned network trained from new weights: what fine-tuning gained over that is what the old weights were worth
    (Liu, Sun, Zhou, Huang, Darrell: Rethinking the Value of Network Pruning, arXiv 1810.05270).

    E, the epochs of `scratch_e`, are `epochs`, or all epochs of the step's own training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scratch_e: bool = Field(
        default=False, description="Train it for E epochs, as many as the network was trained for."
    )
    scratch_b: bool = Field(
        default=False,
        description="Train it for the computation of E epochs of the uploaded model: E times the ratio of multiply-accumulates, "
        "rounded down. Those with a pruned weight do not count.",
    )
    epochs: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Epochs that the uploaded model was trained for, which nobody can read off it; null takes the epochs of "
        "the step's own training, in all rounds, which makes the controls weaker than those of the paper.",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="Peak learning rate of the controls, usually above that of fine-tuning; null takes that of the step's "
        "own training, and 0.001 where that is of a mask.",
    )
    max_epochs_ratio: float | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="scratch_b trains for at most so many times E epochs; 2 in the paper's runs on ImageNet. Null: no limit.",
    )

    @model_validator(mode="after")
    def _asks_for_one(self) -> Self:
        if not self.scratch_e and not self.scratch_b:
            raise ValueError(
                "controls asks for none: set scratch_e or scratch_b, or leave controls out"
            )
        return self

    @model_validator(mode="after")
    def _limit_limits(self) -> Self:
        if self.max_epochs_ratio is not None and not self.scratch_b:
            raise ValueError("max_epochs_ratio limits scratch_b, which is not asked for")
        return self
