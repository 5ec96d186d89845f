"""Weights in 16-bit floats."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from modelpress.spec.step import Step


class QuantizeFloat16(Step):
    """Stores weights as 16-bit floats; everything computes in float32, from weights that were rounded once."""

    paper: ClassVar[str] = (
        "float16: Micikevicius et al.: Mixed Precision Training (arXiv 1710.03740); bfloat16: Kalamkar et al. (arXiv 1905.12322)"
    )
    leaves_trainable: ClassVar[bool] = False

    kind: Literal["quantize.float16"] = "quantize.float16"
    type: Literal["float16", "bfloat16"] = Field(
        default="float16",
        description="float16: 11 digits in binary, up to 65,504. bfloat16: 8 digits, the range of float32.",
    )
