"""Weights that won the lottery of initialization: trained, pruned, put back to where they began, and trained again."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelpress.spec.distill import Recover, _teaching
from modelpress.spec.prune._controls import Controls
from modelpress.spec.prune._pruning import Pruning
from modelpress.spec.step import FineTune

MAX_EPOCHS = 50_000
"""Most epochs of a step, those of all its networks together."""

Variant = Literal["random_reinit", "signed_permutation", "signed_constant", "random_mask"]


class TicketTraining(FineTune):
    """How every network is trained: the dense one, the tickets, the controls. Needs labels."""

    epochs: int = Field(
        default=10, ge=1, le=1000, description="Passes over the train split, for each network."
    )
    learning_rate: float = Field(
        default=1.2e-3,
        gt=0,
        le=10,
        description="Peak learning rate; decays to zero by a cosine over the training of a network.",
    )
    batch_size: int = Field(
        default=60, ge=1, le=65536, description="Samples in each optimizer step."
    )


class Moment(BaseModel):
    """A moment of the dense network's training, in epochs or in optimizer steps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int | None = Field(default=None, ge=1, le=999, description="After so many epochs.")
    steps: int | None = Field(
        default=None, ge=1, le=1 << 31, description="After so many optimizer steps."
    )

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            seen = "neither" if self.epochs is None else "both"
            raise ValueError(f"exactly one of epochs and steps says when; {seen} is given")
        return self


class TicketControls(Controls):
    """What tickets are compared with, in every round: networks as sparse as the ticket, trained as it is, that lack one thing.
    Those of `scratch_e` and `scratch_b` have the mask of the last ticket, that of the artifact.
    """

    random_reinit: bool = Field(
        default=True,
        description="The ticket's mask; the initial weights of each layer in random order.",
    )
    signed_permutation: bool = Field(
        default=False,
        description="The ticket's mask and signs; the magnitudes of each layer in random order.",
    )
    signed_constant: bool = Field(
        default=False,
        description="The ticket's mask and signs; every magnitude is the standard deviation of its layer.",
    )
    random_mask: bool = Field(
        default=True,
        description="The ticket's weights; in each layer as many are kept, but random ones.",
    )

    @property
    def asked(self) -> tuple[Variant, ...]:
        """Those that are wanted, in the order of their curves."""
        every: tuple[Variant, ...] = (
            "random_reinit",
            "signed_permutation",
            "signed_constant",
            "random_mask",
        )
        return tuple(name for name in every if getattr(self, name))

    @model_validator(mode="after")
    def _asks_for_one(self) -> Self:
        """Tickets are worth a look by themselves."""
        return self


class PruneLottery(Pruning):
    """Finds a winning ticket: trains, prunes the smallest weights, resets the others to what they began with, and again."""

    paper: ClassVar[str] = (
        "Frankle, Carbin: The Lottery Ticket Hypothesis (arXiv 1803.03635); rewind_to: Frankle, Dziugaite, Roy, Carbin: "
        "Stabilizing the Lottery Ticket Hypothesis (arXiv 1903.01611); controls that keep signs: Zhou, Lan, Liu, Yosinski: "
        "Deconstructing Lottery Tickets (arXiv 1905.01067)"
    )

    kind: Literal["prune.lottery"] = "prune.lottery"
    rounds: int = Field(
        ge=1,
        le=50,
        description="Rounds of training, pruning and resetting: after r of them (1 - rate)^r of the weights are left.",
    )
    rate: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Fraction of a layer's surviving weights that goes in each round.",
    )
    conv_rate: float | None = Field(
        default=None, gt=0, lt=1, description="The same for convolutions; null takes rate."
    )
    output_rate: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="The same for the layer that gives the output; null takes half of rate.",
    )
    rewind_to: Moment | None = Field(
        default=None,
        description="Reset to the weights of this moment of the dense network's training; null resets to the initial weights.",
    )
    training: TicketTraining = Field(
        default=TicketTraining(), description="How every network is trained."
    )
    recover: Recover | None = Field(
        default=None,
        description="What training goes by: teachers beside labels, such as the uploaded model; null goes by labels alone. Labels are "
        "needed in any case.",
    )
    controls: TicketControls = Field(
        default=TicketControls(), description="What tickets are compared with."
    )
    seeds: int = Field(
        default=1,
        ge=1,
        le=10,
        description="Runs, each with initial weights and an order of the data of its own; the artifact is the first one's.",
    )

    @property
    def trained_epochs(self) -> int:
        """Of one network: a ticket forgets all but its mask."""
        return self.training.epochs

    @property
    def control_training(self) -> FineTune:
        return self.training

    @property
    def needs_data(self) -> bool:
        return True

    @property
    def needs_labels(self) -> bool:
        return True

    @property
    def needs_models(self) -> tuple[str, ...]:
        return _teaching.roles(self.recover)

    @property
    def uses_models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("initial", *self.needs_models)))

    @property
    def networks(self) -> int:
        """How many are trained at most: in each run a dense one, and in each round the ticket and its controls."""
        return self.seeds * (1 + self.rounds * (1 + len(self.controls.asked)))

    @model_validator(mode="after")
    def _affordable(self) -> Self:
        total = self.networks * self.training.epochs
        if total > MAX_EPOCHS:
            raise ValueError(
                f"{self.networks:,} networks of {self.training.epochs} epochs are {total:,} epochs, the limit is {MAX_EPOCHS:,}: "
                "ask for fewer seeds, rounds, controls or training.epochs"
            )
        return self

    @model_validator(mode="after")
    def _rewinds_within_training(self) -> Self:
        moment = self.rewind_to
        if moment is not None and moment.epochs and moment.epochs >= self.training.epochs:
            raise ValueError(
                f"rewind_to is after {moment.epochs} epochs, but training has {self.training.epochs}: rewind to an earlier one"
            )
        return self
