"""Weights in 16-bit floats."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelpress.spec.step import Step


class QuantizeFloat16(Step):
    """Stores weights as 16-bit floats, rounded once; what computes with them does so in float32, or where asked for in float16."""

    paper: ClassVar[str] = (
        "float16: Micikevicius et al.: Mixed Precision Training (arXiv 1710.03740); bfloat16: Kalamkar et al. (arXiv 1905.12322)"
    )
    leaves_trainable: ClassVar[bool] = False

    kind: Literal["quantize.float16"] = "quantize.float16"
    type: Literal["float16", "bfloat16"] = Field(
        default="float16",
        description="float16: 11 digits in binary, up to 65,504. bfloat16: 8 digits, the range of float32.",
    )
    compute: Literal["float32", "float16"] = Field(
        default="float32",
        description="What Conv, ConvTranspose, Gemm and MatMul with a weight compute in. float16: for GPUs and other hardware with such "
        "arithmetic; CPUs mostly compute in float32 all the same and pay for the casts. Everything else stays in float32.",
    )

    @model_validator(mode="after")
    def _arithmetic_is_that_of_the_type(self) -> Self:
        if self.compute == "float16" and self.type == "bfloat16":
            raise ValueError(
                "compute 'float16' needs type 'float16', type is 'bfloat16': ONNX Runtime has no Conv and no MatMul for bfloat16 on CPUs"
            )
        return self
