"""Layers as products of thinner ones."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelpress.spec.rewrite._rewriting import Rewriting

RANKS = ("ratio", "energy", "target")

_Rank = Annotated[int, Field(ge=1, le=1 << 20)]


class LayerRank(BaseModel):
    """A rank of their own for some layers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: str = Field(
        min_length=1,
        max_length=256,
        description="Names of weights or nodes; * and ? match as in file names.",
    )
    rank: _Rank | tuple[_Rank, _Rank] = Field(
        description="The rank of each of them; of a convolution by Tucker-2 two, channels on the side of the outputs and of the inputs."
    )


class RewriteLowRank(Rewriting):
    """Writes matrix products and convolutions as products of thinner ones: fewer weights and fewer multiply-accumulates."""

    paper: ClassVar[str] = (
        "spatial: Jaderberg, Vedaldi, Zisserman: Speeding up CNNs with Low Rank Expansions (arXiv 1405.3866); channel: Zhang, Zou, He, "
        "Sun (arXiv 1505.06798); tucker: Kim et al. (arXiv 1511.06530); cp: Lebedev et al. (arXiv 1412.6553); activation_aware: Wang, "
        "Zheng, Wan, Zhang: SVD-LLM (arXiv 2403.07378)"
    )

    kind: Literal["rewrite.low_rank"] = "rewrite.low_rank"
    convolution: Literal["spatial", "channel", "tucker", "cp"] = Field(
        default="spatial",
        description="What a convolution becomes. spatial: k x 1, then 1 x k. channel: to fewer channels, then 1 x 1. tucker: 1 x 1 to fewer "
        "channels, the kernel between them, 1 x 1 back. cp: 1 x 1, each channel along each axis, 1 x 1. Convolutions without the axes for it "
        "are taken as matrices, as by channel.",
    )
    ratio: float | None = Field(
        default=None,
        gt=1,
        le=1000,
        description="Each layer gets the largest rank at which it has so many times fewer weights, or the smallest where none is.",
    )
    energy: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Each layer gets the smallest rank that keeps this share of its squared singular values; with tucker, of each of "
        "the two sides.",
    )
    overrides: tuple[LayerRank, ...] = Field(
        default=(),
        max_length=256,
        description="Layers with a rank of their own, the first match of each; a target is met by the others. Without ratio, energy and "
        "target these are the only layers that change.",
    )
    activation_aware: bool = Field(
        default=False,
        description="Keep what matters for the outputs on training samples, not for the weights: the singular values are those of "
        "the weight times a root of its inputs' second moments. For matrix products and for convolutions taken as matrices. Needs data.",
    )

    @property
    def measures(self) -> bool:
        return super().measures or self.activation_aware

    @property
    def uses_sensitivity(self) -> bool:
        return self.target is not None and not self.activation_aware

    @model_validator(mode="after")
    def _one_rule_for_ranks(self) -> Self:
        given = [name for name in RANKS if getattr(self, name) is not None]
        if len(given) > 1 or not (given or self.overrides):
            seen = " and ".join(given) or "none"
            raise ValueError(
                f"exactly one of ratio, energy and target says what ranks are, or overrides alone do; {seen} is given"
            )
        return self

    @model_validator(mode="after")
    def _cp_has_no_energy(self) -> Self:
        if self.energy is not None and self.convolution == "cp":
            raise ValueError(
                "energy is a share of singular values, which 'cp' has none of: set ratio or target, or convolution = 'tucker'"
            )
        return self
