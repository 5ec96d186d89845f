"""The same function with fewer nodes."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelpress.spec.step import Step


class RewriteClean(Step):
    """Takes out what a network computes for nothing, without changing what it answers; by onnxscript and onnx-ir."""

    paper: ClassVar[str] = (
        "Compiler passes of onnxscript and onnx-ir; folded normalization: Jacob et al. (arXiv 1712.05877), section 3.2"
    )

    kind: Literal["rewrite.clean"] = "rewrite.clean"
    fold_batch_norm: bool = Field(
        default=True,
        description="Multiply normalization by running statistics into the layer before it. Later training is then without it.",
    )

    @model_validator(mode="after")
    def _excludes_nothing(self) -> Self:
        if self.exclude:
            raise ValueError(
                f"exclude is {list(self.exclude)[:5]}, but rewrite.clean takes nodes out wherever they are: leave exclude out"
            )
        return self
