"""Channels that go, with everything that depends on them."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelpress.spec.prune import _rounds
from modelpress.spec.step import FineTune, Step


class PruneChannels(Step):
    """Removes whole channels, with everything that depends on them: the network gets smaller and faster."""

    paper: ClassVar[str] = (
        "Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets (arXiv 1608.08710); joined layers: "
        "Fang, Ma, Song, Mi, Wang: DepGraph (arXiv 2301.12900); bn_scale: Liu et al.: Network Slimming (arXiv 1708.06519); "
        "taylor: Molchanov et al. (arXiv 1906.10771); geometric_median: He et al. (arXiv 1811.00250); "
        "isomorphic: Fang et al. (arXiv 2407.04616)"
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
    criterion: Literal["l2", "l1", "bn_scale", "geometric_median", "taylor", "random"] = Field(
        default="l2",
        description="What a channel is worth, summed over all weights that go with it: norms, the scale of its normalization, "
        "distance to its neighbours, the loss it would cost (needs labelled data), or nothing.",
    )
    scope: Literal["layer", "global", "isomorphic"] = Field(
        default="layer",
        description="Take the same fraction of each layer, the least worthy of all layers, or of layers of equal structure.",
    )
    max_layer_fraction: float = Field(
        default=0.9, gt=0, lt=1, description="No layer loses more than this fraction."
    )
    round_to: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Keep a multiple of so many channels in each layer, as hardware likes it; removes fewer where needed.",
    )
    min_channels: int = Field(
        default=1, ge=1, le=65536, description="No layer is left with fewer channels."
    )
    samples: int = Field(
        default=256,
        ge=1,
        le=100_000,
        description="With criterion 'taylor': training samples whose loss is differentiated.",
    )
    rounds: int = Field(
        default=1,
        ge=1,
        le=100,
        description="Rounds of prune and fine-tune on the way to the target.",
    )
    fine_tune: FineTune | None = Field(
        default=None, description="Training after each round; null prunes once and trains nothing."
    )

    @property
    def needs_data(self) -> bool:
        return self.needs_labels

    @property
    def needs_labels(self) -> bool:
        return self.fine_tune is not None or self.criterion == "taylor"

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        targets = ("fraction", "macs_ratio", "parameters_ratio")
        given = [name for name in targets if getattr(self, name) is not None]
        if len(given) != 1:
            seen = " and ".join(given) or "none"
            raise ValueError(
                f"exactly one of fraction, macs_ratio and parameters_ratio is a target; {seen} is given"
            )
        return self

    @model_validator(mode="after")
    def _rounds_train(self) -> Self:
        _rounds.check(self.rounds, self.fine_tune)
        return self

    @model_validator(mode="after")
    def _cap_allows_target(self) -> Self:
        if self.fraction is not None and self.max_layer_fraction < self.fraction:
            raise ValueError(
                f"max_layer_fraction {self.max_layer_fraction} is below fraction {self.fraction}, "
                "which then can't be reached"
            )
        return self
