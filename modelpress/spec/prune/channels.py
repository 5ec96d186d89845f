"""Channels that go, with everything that depends on them."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelpress.spec.prune._pruning import PruningInRounds
from modelpress.spec.step import FineTune

TARGETS = ("fraction", "macs_ratio", "parameters_ratio", "latency_ratio")
BLOCK = 8
"""Channels that ONNX Runtime's convolutions take together."""

_OF_SPEED = ("macs_ratio", "latency_ratio")
_OF_LOSS = ("taylor",)
_OF_ACTIVATIONS = ("activation",)


class LayerFraction(BaseModel):
    """A fraction of their own for some layers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: str = Field(
        min_length=1,
        max_length=256,
        description="Names of weights or nodes; * and ? match as in file names.",
    )
    fraction: float = Field(
        ge=0, lt=1, description="Fraction of the channels of each of them that goes."
    )


class SparseTraining(FineTune):
    """Training under a penalty on the scales of normalization, so that some of them become small. Needs labels."""

    strength: float = Field(
        default=1e-3,
        gt=0,
        le=1,
        description="Weight of the penalty: the sum of the absolute scales, times this, is added to the loss.",
    )
    optimizer: Literal["adam", "sgd"] = Field(
        default="sgd",
        description="SGD with momentum 0.9, as in the paper; Adam evens out the penalty.",
    )
    learning_rate: float = Field(
        default=1e-2,
        gt=0,
        le=10,
        description="Peak learning rate; decays to zero by a cosine.",
    )


class PruneChannels(PruningInRounds):
    """Removes whole channels, with everything that depends on them: the network gets smaller and faster."""

    paper: ClassVar[str] = (
        "Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets (arXiv 1608.08710); joined layers: "
        "Fang, Ma, Song, Mi, Wang: DepGraph (arXiv 2301.12900); bn_scale: Liu et al.: Network Slimming (arXiv 1708.06519); "
        "taylor: Molchanov et al. (arXiv 1906.10771); geometric_median: He et al. (arXiv 1811.00250); "
        "activation: Hu, Peng, Tai, Tang: Network Trimming (arXiv 1607.03250); isomorphic: Fang et al. (arXiv 2407.04616)"
    )

    kind: Literal["prune.channels"] = "prune.channels"
    fraction: float | None = Field(
        default=None, gt=0, lt=1, description="Fraction of the channels that go."
    )
    macs_ratio: float | None = Field(
        default=None,
        gt=1,
        le=1000,
        description="Remove channels until multiply-accumulates are so many times fewer.",
    )
    parameters_ratio: float | None = Field(
        default=None,
        gt=1,
        le=1000,
        description="Remove channels until parameters are so many times fewer.",
    )
    latency_ratio: float | None = Field(
        default=None,
        gt=1,
        le=1000,
        description="Remove channels until ONNX Runtime is so many times faster, measured on the worker's CPU beside the network "
        "as it was. The one target that depends on the clock: the same seed may give another network.",
    )
    best_effort: bool = Field(
        default=False,
        description="Where a ratio can't be reached, go as far as possible and say so, instead of failing.",
    )
    criterion: Literal[
        "l2", "l1", "bn_scale", "geometric_median", "taylor", "activation", "random"
    ] = Field(
        default="l2",
        description="What a channel is worth, summed over all weights that go with it: norms, the scale of its normalization, "
        "distance to its neighbours, the loss it would cost (needs labelled data), how often it is active (needs data), or nothing.",
    )
    sparse_training: SparseTraining | None = Field(
        default=None,
        description="With criterion 'bn_scale': training that makes scales small, before each round.",
    )
    scope: Literal["layer", "global", "isomorphic", "sensitivity"] = Field(
        default="layer",
        description="Take the same fraction of each layer, the least worthy of all layers, or of layers of equal structure; or of each layer "
        "the fraction that alone moves the outputs as far, as analyze.sensitivity measures it (needs data).",
    )
    overrides: tuple[LayerFraction, ...] = Field(
        default=(),
        max_length=256,
        description="Layers with a fraction of their own, the first match of each; the target is met by the others.",
    )
    max_layer_fraction: float = Field(
        default=0.9,
        gt=0,
        lt=1,
        description="No layer loses more than this fraction, over all rounds.",
    )
    round_to: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Keep a multiple of so many channels in each layer; removes fewer where needed, and none of narrower layers. "
        "Null is 8 where macs_ratio or latency_ratio is the target, since ONNX Runtime's convolutions work on blocks of 8 "
        "channels and are slow beside them, and 1 otherwise.",
    )
    attention: Literal["auto", "heads", "width", "both"] = Field(
        default="auto",
        description="What goes inside attention: whole heads, the same places of all heads of a layer, both, or of the two what is "
        "more. The scale of the scores stays. The width of the stream around it goes in any case.",
    )
    normalized: Literal["narrow", "keep"] = Field(
        default="narrow",
        description="Channels that a layer normalization or another statistic is over: they may go, and it is then over those that "
        "are left, so the function changes even where they were zero; or all of them are kept.",
    )
    min_channels: int = Field(
        default=1, ge=1, le=65536, description="No layer is left with fewer channels."
    )
    samples: int = Field(
        default=256,
        ge=1,
        le=100_000,
        description="With criterion 'taylor' or 'activation', or scope 'sensitivity': training samples that are run.",
    )

    @property
    def needs_data(self) -> bool:
        measures = self.criterion in _OF_ACTIVATIONS or self.scope == "sensitivity"
        return self.fine_tune is not None or self.needs_labels or measures

    @property
    def uses_sensitivity(self) -> bool:
        return self.scope == "sensitivity"

    @property
    def needs_labels(self) -> bool:
        trains = self.trains_by_labels or self.sparse_training is not None
        return trains or self.criterion in _OF_LOSS

    @property
    def trained_epochs(self) -> int:
        sparse = self.sparse_training
        return super().trained_epochs + (self.rounds * sparse.epochs if sparse is not None else 0)

    @property
    def target(self) -> tuple[str, float]:
        """The name of the one target, and its value."""
        return next((name, getattr(self, name)) for name in TARGETS if getattr(self, name))

    @property
    def multiple(self) -> int:
        """What round_to is, where none is given that of the target."""
        if self.round_to is not None:
            return self.round_to
        return BLOCK if self.target[0] in _OF_SPEED else 1

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) != 1:
            seen = " and ".join(given) or "none"
            raise ValueError(
                f"exactly one of {', '.join(TARGETS[:-1])} and {TARGETS[-1]} is a target; {seen} is given"
            )
        return self

    @model_validator(mode="after")
    def _sparse_training_is_used(self) -> Self:
        if self.sparse_training is not None and self.criterion != "bn_scale":
            raise ValueError(
                f"sparse_training makes scales of normalization small, which criterion '{self.criterion}' does not look at; "
                "set criterion = 'bn_scale', or leave sparse_training out"
            )
        return self

    @model_validator(mode="after")
    def _cap_allows_target(self) -> Self:
        if self.fraction is not None and self.max_layer_fraction < self.fraction:
            raise ValueError(
                f"max_layer_fraction {self.max_layer_fraction} is below fraction {self.fraction}, "
                "which then can't be reached"
            )
        return self
