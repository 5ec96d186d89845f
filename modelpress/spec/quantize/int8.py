"""Weights and activations in 8-bit integers."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from modelpress.spec.step import Step


class QuantizeInt8(Step):
    """Weights and activations in 8-bit integers, as QuantizeLinear/DequantizeLinear pairs that ONNX Runtime fuses."""

    paper: ClassVar[str] = (
        "Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only "
        "Inference (arXiv 1712.05877)"
    )
    leaves_trainable: ClassVar[bool] = False

    kind: Literal["quantize.int8"] = "quantize.int8"
    mode: Literal["static", "dynamic"] = Field(
        default="static",
        description="static: activation ranges measured on calibration data; dynamic: measured at each run, no data.",
    )
    calibration: Literal["minmax", "percentile"] = Field(
        default="minmax", description="How a static activation range is taken from the values seen."
    )
    percentile: float = Field(
        default=99.99,
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
        description="7-bit weights, against int16 saturation on CPUs without VNNI; null decides by this CPU and says so.",
    )

    @property
    def needs_data(self) -> bool:
        return self.mode == "static"
