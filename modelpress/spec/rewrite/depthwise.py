"""Convolutions as depthwise ones and pointwise ones."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from modelpress.spec.rewrite._rewriting import Rewriting


class RewriteDepthwise(Rewriting):
    """Writes each convolution as a depthwise one and a pointwise one behind it, from its best fit; what is lost, training makes good."""

    paper: ClassVar[str] = (
        "Guo, Li, Lin, Xiao, Wu, Chen: Network Decoupling (arXiv 1808.05517); the form: Howard et al.: MobileNets (arXiv 1704.04861)"
    )

    kind: Literal["rewrite.depthwise"] = "rewrite.depthwise"
    multiplier: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Filters of each input channel. With target, the most of them; each layer gets from 1 to so many, or stays.",
    )
    min_inputs: int = Field(
        default=4,
        ge=1,
        le=65536,
        description="Convolutions of fewer input channels stay: the first of a network would be left with one filter for each colour.",
    )
