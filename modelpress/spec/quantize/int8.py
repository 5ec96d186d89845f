"""Weights and activations in 8-bit integers."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelpress.spec.step import Step

Target = Literal["cpu", "tensorrt", "mobile"]


Calibration = Literal["minmax", "percentile", "entropy", "mse"]
PERCENTILE = 99.99


def check_percentile(calibration: Calibration, percentile: float) -> None:
    """Refuses a share of values that no calibration asks for."""
    if calibration != "percentile" and percentile != PERCENTILE:
        raise ValueError(
            f"percentile {percentile:g} is for calibration 'percentile', calibration is '{calibration}': set it, or leave percentile out"
        )


class AdaRound(BaseModel):
    """Whether each weight is rounded up or down is learned, so that the layer's outputs change least."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    iterations: int = Field(
        default=500, ge=10, le=100_000, description="Optimizer steps for each layer."
    )
    learning_rate: float = Field(default=0.01, gt=0, le=1, description="Of Adam.")
    regularization: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="How strongly weights are pushed to either side, beside an error of 1 for rounding to nearest.",
    )


class QuantizeInt8(Step):
    """Weights and activations in 8-bit integers, as QuantizeLinear/DequantizeLinear pairs that ONNX Runtime fuses."""

    paper: ClassVar[str] = (
        "Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only "
        "Inference (arXiv 1712.05877); equalize, bias_correction: Nagel et al. (arXiv 1906.04721); adaround: Nagel et al. "
        "(arXiv 2004.10568); smooth: Xiao et al. (arXiv 2211.10438)"
    )
    leaves_trainable: ClassVar[bool] = False

    kind: Literal["quantize.int8"] = "quantize.int8"
    mode: Literal["static", "dynamic"] = Field(
        default="static",
        description="static: activation ranges measured on calibration data; dynamic: measured at each run, no data.",
    )
    target: Target = Field(
        default="cpu",
        description="Who runs the file. cpu: ONNX Runtime's integer kernels. tensorrt: symmetric int8, float biases, QuantizeLinear "
        "where a layer reads. mobile: integers from end to end, one weight scale per matrix. Dynamic mode knows cpu only.",
    )
    calibration: Calibration = Field(
        default="minmax",
        description="How a static activation range is taken from the values seen: all of them, a share of them, the range that keeps "
        "most information (Kullback-Leibler), or that with the least squared error.",
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
    per_channel: bool = Field(
        default=True, description="One weight scale per output channel instead of per tensor."
    )
    reduce_range: bool | None = Field(
        default=None,
        description="7-bit weights, against int16 saturation on CPUs without VNNI; null decides by the CPU that measures and says so.",
    )
    equalize: bool = Field(
        default=False,
        description="Balances the channels of consecutive layers first, which changes nothing in float (cross-layer equalisation).",
    )
    smooth: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Moves outliers from activations behind a LayerNormalization into the weights, by this exponent (SmoothQuant; "
        "0.5 is usual); null leaves them. Needs data.",
    )
    adaround: AdaRound | None = Field(
        default=None,
        description="Learns the rounding of each weight; null rounds to nearest. Needs data.",
    )
    bias_correction: bool = Field(
        default=False,
        description="Shifts biases so that the mean of each channel is that of the float layer. Needs data.",
    )

    @property
    def needs_data(self) -> bool:
        refined = self.smooth is not None or self.adaround is not None or self.bias_correction
        return self.mode == "static" or refined

    @model_validator(mode="after")
    def _ranges_are_taken_as_asked(self) -> Self:
        if self.mode == "dynamic" and self.calibration != "minmax":
            raise ValueError(
                f"calibration is '{self.calibration}', but mode 'dynamic' takes ranges in each run: set mode to static, or leave calibration out"
            )
        check_percentile(self.calibration, self.percentile)
        return self

    @model_validator(mode="after")
    def _dynamic_mode_has_a_runner(self) -> Self:
        if self.mode == "dynamic" and self.target != "cpu":
            raise ValueError(
                f"target is '{self.target}', but ranges that are taken in each run need ONNX Runtime's own kernels: "
                "set mode to static, or target to cpu"
            )
        return self
