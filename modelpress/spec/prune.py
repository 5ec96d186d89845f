"""Steps that remove weights."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelpress.spec.step import FineTune, Step


class PruneMagnitude(Step):
    """Zeroes the weights of smallest magnitude, in rounds with fine-tuning between them."""

    paper: ClassVar[str] = (
        "Han, Pool, Tran, Dally: Learning both Weights and Connections (arXiv 1506.02626); "
        "schedule: Zhu, Gupta: To prune, or not to prune (arXiv 1710.01878)"
    )

    kind: Literal["prune.magnitude"] = "prune.magnitude"
    sparsity: float = Field(
        gt=0, lt=1, description="Fraction of the weights that are zero at the end."
    )
    scope: Literal["global", "layer"] = Field(
        default="global",
        description="Rank all weights together, or each layer's own to the same fraction.",
    )
    max_layer_sparsity: float = Field(
        default=0.98,
        gt=0,
        lt=1,
        description="With scope 'global', no layer loses more than this fraction, so that none collapses.",
    )
    rounds: int = Field(
        default=1, ge=1, le=100, description="Rounds of prune and fine-tune, on the cubic schedule."
    )
    fine_tune: FineTune | None = Field(
        default=None, description="Training after each round; null prunes once and trains nothing."
    )

    @property
    def needs_data(self) -> bool:
        return self.fine_tune is not None

    @property
    def needs_labels(self) -> bool:
        return self.fine_tune is not None

    @model_validator(mode="after")
    def _rounds_train(self) -> Self:
        _check_rounds(self.rounds, self.fine_tune)
        return self

    @model_validator(mode="after")
    def _cap_allows_target(self) -> Self:
        if self.scope == "global" and self.max_layer_sparsity < self.sparsity:
            raise ValueError(
                f"max_layer_sparsity {self.max_layer_sparsity} is below sparsity {self.sparsity}, "
                "which then can't be reached"
            )
        return self


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
        _check_rounds(self.rounds, self.fine_tune)
        return self

    @model_validator(mode="after")
    def _cap_allows_target(self) -> Self:
        if self.fraction is not None and self.max_layer_fraction < self.fraction:
            raise ValueError(
                f"max_layer_fraction {self.max_layer_fraction} is below fraction {self.fraction}, "
                "which then can't be reached"
            )
        return self


def _check_rounds(rounds: int, fine_tune: FineTune | None) -> None:
    if rounds > 1 and fine_tune is None:
        raise ValueError(
            f"rounds is {rounds} but fine_tune is null: rounds without training equal one round; "
            "set fine_tune or rounds = 1"
        )
