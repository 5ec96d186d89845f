"""Convolutions as the blocks of small architectures."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelpress.spec.rewrite._rewriting import Rewriting

OPTIONS = {
    "squeeze": "fire",
    "expansion": "inverted_residual",
    "groups": "shuffle",
    "ratio": "ghost",
}
"""Fields that one block alone has."""


class RewriteBlocks(Rewriting):
    """Puts a block of a small architecture in the place of each convolution, of the same shape; training makes it agree."""

    paper: ClassVar[str] = (
        "fire: Iandola et al.: SqueezeNet (arXiv 1602.07360); inverted_residual: Sandler et al.: MobileNetV2 (arXiv 1801.04381); shuffle: "
        "Zhang et al.: ShuffleNet (arXiv 1707.01083); separable: Chollet: Xception (arXiv 1610.02357); ghost: Han et al.: GhostNet "
        "(arXiv 1911.11907)"
    )

    kind: Literal["rewrite.blocks"] = "rewrite.blocks"
    block: Literal["fire", "inverted_residual", "shuffle", "separable", "ghost"] = Field(
        default="ghost",
        description="fire: 1x1 to few channels, then 1x1 and k x k side by side. inverted_residual: 1x1 to more channels, depthwise, 1x1 back. "
        "shuffle: grouped 1x1, shuffle, depthwise, grouped 1x1. separable: depthwise, then 1x1. ghost: some of the maps by a convolution, the "
        "others from them.",
    )
    layers: tuple[str, ...] = Field(
        default=("*",),
        min_length=1,
        max_length=256,
        description="Names of weights or nodes that may be replaced; * and ? match as in file names.",
    )
    squeeze: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="With block 'fire': channels of its first convolution as a share of the layer's outputs; 0.125 in SqueezeNet.",
    )
    expansion: float = Field(
        default=1.0,
        gt=0,
        le=16,
        description="With block 'inverted_residual': inner channels as a multiple of the inputs; 6 in MobileNet v2, where it replaces no "
        "convolution of the same width, which costs less from about 3 on.",
    )
    groups: int = Field(
        default=4,
        ge=2,
        le=64,
        description="With block 'shuffle': the most groups; the largest number up to it that divides the channels is taken.",
    )
    ratio: int = Field(
        default=2,
        ge=2,
        le=64,
        description="With block 'ghost': so many maps come from each that is convolved.",
    )

    @model_validator(mode="after")
    def _options_have_their_block(self) -> Self:
        fields = type(self).model_fields
        for option, block in OPTIONS.items():
            is_given = getattr(self, option) != fields[option].default
            if is_given and block != self.block:
                raise ValueError(
                    f"{option} is of block '{block}', but block is '{self.block}': leave {option} out"
                )
        return self
