"""Weights that are chosen, never trained."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from modelpress.spec.distill import Recover, _teaching
from modelpress.spec.prune._pruning import Pruning
from modelpress.spec.step import FineTune


class MaskTraining(FineTune):
    """How the mask is trained. Needs labels."""

    epochs: int = Field(default=60, ge=1, le=10_000, description="Passes over the train split.")
    learning_rate: float = Field(
        default=20.0,
        gt=0,
        le=100_000,
        description="Peak learning rate of the mask's scores, whose gradients are small; decays to zero by a cosine.",
    )
    optimizer: Literal["adam", "sgd"] = Field(
        default="sgd", description="Adam, or SGD with momentum 0.9."
    )


class PruneSupermask(Pruning):
    """Draws new random weights, freezes them and learns which of them to keep: a network of a seed and one bit for each weight."""

    paper: ClassVar[str] = (
        "Zhou, Lan, Liu, Yosinski: Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask (arXiv 1905.01067)"
    )

    kind: Literal["prune.supermask"] = "prune.supermask"
    weights: Literal["signed_constant", "random"] = Field(
        default="signed_constant",
        description="What is masked: new random weights, or their signs times the standard deviation of their layer.",
    )
    rescale: bool = Field(
        default=True,
        description="Dynamic weight rescaling: what is kept of a layer is multiplied by its weights over its kept weights.",
    )
    training: MaskTraining = Field(
        default=MaskTraining(), description="How the mask is trained on the train split."
    )
    recover: Recover | None = Field(
        default=None,
        description="What training goes by: teachers beside labels, such as the uploaded model; null goes by labels alone. Labels are "
        "needed in any case.",
    )
    draws: int = Field(
        default=10,
        ge=1,
        le=10,
        description="Masks drawn from what was learned, beside the likeliest; the artifact has the one of lowest training loss.",
    )

    @property
    def trained_epochs(self) -> int:
        return self.training.epochs

    @property
    def control_training(self) -> FineTune:
        """Weights of scratch controls are trained by Adam at its own rate: those of scores are 10,000 times higher."""
        return FineTune(
            batch_size=self.training.batch_size, weight_decay=self.training.weight_decay
        )

    @property
    def needs_data(self) -> bool:
        return True

    @property
    def needs_models(self) -> tuple[str, ...]:
        return _teaching.roles(self.recover)

    @property
    def needs_labels(self) -> bool:
        return True
