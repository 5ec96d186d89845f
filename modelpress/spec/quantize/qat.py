"""Training with simulated 8-bit integers."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelpress.spec.distill import Recover, _teaching
from modelpress.spec.quantize.int8 import (
    PERCENTILE,
    Calibration,
    QuantizeInt8,
    Target,
    check_percentile,
)
from modelpress.spec.step import FineTune, Step


class QatTraining(FineTune):
    """How weights and step sizes are trained."""

    learning_rate: float = Field(
        default=1e-4,
        gt=0,
        le=10,
        description="Peak learning rate; decays to zero by a cosine. With adam, step sizes change by as large a part of themselves.",
    )


class QuantizeQat(Step):
    """Weights and activations in 8-bit integers whose step sizes are trained together with the weights; stored as by quantize.int8."""

    paper: ClassVar[str] = (
        "Esser et al.: Learned Step Size Quantization (arXiv 1902.08153); Jacob et al.: Quantization and Training of Neural Networks "
        "for Efficient Integer-Arithmetic-Only Inference (arXiv 1712.05877)"
    )
    leaves_trainable: ClassVar[bool] = False

    kind: Literal["quantize.qat"] = "quantize.qat"
    training: QatTraining = Field(
        default=QatTraining(), description="How weights and step sizes are trained."
    )
    distill: bool | None = Field(
        default=None,
        description="Learn the outputs of the uploaded model instead of labels; null does so where there are no labels, or where the "
        "model is no classifier.",
    )
    recover: Recover | None = Field(
        default=None,
        description="What training goes by in more detail, such as teachers and a temperature; null: as `distill` says.",
    )
    target: Target = Field(
        default="cpu",
        description="Who runs the file, as in quantize.int8: cpu, tensorrt or mobile.",
    )
    calibration: Calibration = Field(
        default="mse",
        description="How the first step sizes of activations are taken, as in quantize.int8.",
    )
    percentile: float = Field(
        default=PERCENTILE,
        gt=50,
        le=100,
        description="With calibration 'percentile': the share of values kept, in percent.",
    )
    samples: int = Field(
        default=512, ge=1, le=100_000, description="Calibration samples taken from the train split."
    )
    reduce_range: bool | None = Field(
        default=None,
        description="7-bit weights, as in quantize.int8; null decides by the CPU that measures and says so.",
    )
    equalize: bool = Field(
        default=False, description="Balances the channels of consecutive layers first."
    )

    @property
    def needs_data(self) -> bool:
        return True

    @property
    def needs_labels(self) -> bool:
        if self.recover is not None:
            return _teaching.needs_labels(self.training, self.recover)
        return self.distill is False

    @property
    def needs_models(self) -> tuple[str, ...]:
        return _teaching.roles(self.recover)

    @property
    def start(self) -> QuantizeInt8:
        """The quantization that training begins with."""
        return QuantizeInt8(
            exclude=self.exclude,
            target=self.target,
            calibration=self.calibration,
            percentile=self.percentile,
            samples=self.samples,
            reduce_range=self.reduce_range,
            equalize=self.equalize,
        )

    @model_validator(mode="after")
    def _ranges_are_taken_as_asked(self) -> Self:
        check_percentile(self.calibration, self.percentile)
        return self

    @model_validator(mode="after")
    def _says_once_what_is_learned(self) -> Self:
        if self.recover is not None and self.distill is not None:
            raise ValueError("distill and recover both say what is learned: leave one of them out")
        return self
