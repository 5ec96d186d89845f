"""Weights alone in 2 to 8 bits."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from modelpress.spec.step import Step

LEAST, MOST = 2, 8


class MixedBits(BaseModel):
    """Bits for each layer by what it costs the network, measured. Exactly one of the two targets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    choices: tuple[int, ...] = Field(
        default=(2, 4, 8),
        min_length=2,
        max_length=7,
        description="Bits that a layer may get.",
    )
    average_bits: float | None = Field(
        default=None,
        gt=0,
        le=16,
        description="Target: mean bits of a weight over all layers, scales and zero points included.",
    )
    max_accuracy_drop: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Target: the fewest bits whose accuracy on training samples falls by no more than this fraction. Needs labels.",
    )
    count: Literal["file", "codes"] = Field(
        default="file",
        description="What a weight counts: the bits it takes in the ONNX file, or those of its code, which a packed container can "
        "reach; they differ with 3, 5, 6 and 7 bits.",
    )

    @field_validator("choices")
    @classmethod
    def _are_widths(cls, choices: tuple[int, ...]) -> tuple[int, ...]:
        if any(not LEAST <= bits <= MOST for bits in choices) or len(set(choices)) < len(choices):
            raise ValueError(
                f"choices {list(choices)} must be different numbers from {LEAST} to {MOST}"
            )
        return tuple(sorted(choices))

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.average_bits is None) == (self.max_accuracy_drop is None):
            seen = "none" if self.average_bits is None else "both"
            raise ValueError(
                f"exactly one of average_bits and max_accuracy_drop is the target; {seen} is given"
            )
        return self


class QuantizeBits(Step):
    """Stores weights alone in 2 to 8 bits, with scales for each output or group of inputs; everything computes in float."""

    paper: ClassVar[str] = (
        "gptq: Frantar, Ashkboos, Hoefler, Alistarh (arXiv 2210.17323); awq: Lin et al. (arXiv 2306.00978); groups of inputs: "
        "Dettmers, Zettlemoyer (arXiv 2212.09720); mixed bits by measured sensitivity: Dong et al.: HAWQ-V2 (arXiv 1911.03852)"
    )
    leaves_trainable: ClassVar[bool] = False

    kind: Literal["quantize.bits"] = "quantize.bits"
    bits: int = Field(default=4, ge=LEAST, le=MOST, description="Bits of a weight.")
    mixed: MixedBits | None = Field(
        default=None,
        description="Bits for each layer of its own instead of bits, by measured sensitivity. Needs data.",
    )
    group_size: int | None = Field(
        default=32,
        ge=8,
        le=4096,
        description="Inputs of one output that share a scale; null: all of them, one scale per output channel.",
    )
    symmetric: bool = Field(
        default=True,
        description="No zero points: the codes of a scale lie on both sides of zero. False stores one for each scale.",
    )
    method: Literal["rtn", "gptq", "awq"] = Field(
        default="rtn",
        description="rtn: round to nearest, no data. gptq: what rounding one input does wrong, later inputs make good. awq: inputs that "
        "see large activations get finer steps. gptq and awq need data.",
    )
    range: Literal["minmax", "mse"] = Field(
        default="mse",
        description="Where codes end: at the extremes of the weights, or where the squared error is least, weighted by the "
        "inputs where there is data.",
    )
    samples: int = Field(
        default=512,
        ge=1,
        le=100_000,
        description="Training samples that gptq, awq and mixed look at.",
    )
    act_order: bool = Field(
        default=False, description="With gptq: inputs with large activations are rounded first."
    )
    sequential: bool = Field(
        default=False,
        description="With gptq and awq: each layer's inputs are those that the quantized layers before it give, and its weights are "
        "fitted to the float network's outputs before they are rounded; a pass over the samples for each layer.",
    )
    bias_correction: bool = Field(
        default=False,
        description="Biases make good what rounding does to the mean of each output, so that only what varies is left to the weights. "
        "Needs data.",
    )
    damping: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="With gptq and sequential: this share of the mean diagonal is added to the Hessian's diagonal.",
    )
    scales: Literal["float16", "float32"] = Field(
        default="float16",
        description="How scales are stored; layers with tiny weights get float32.",
    )
    unpack: Literal["load", "run"] = Field(
        default="load",
        description="When weights become floats. load: once, as ONNX Runtime opens the file; as fast as before. run: at each run, so that "
        "they stay small in memory; matrix products by MatMulNBits where it can, other layers by DequantizeLinear.",
    )
    activations: Literal["float32", "int8"] = Field(
        default="float32",
        description="With unpack 'run': int8 lets MatMulNBits round its inputs to 8 bits at each run, the fastest for few rows.",
    )

    @model_validator(mode="after")
    def _options_belong_together(self) -> Self:
        if self.act_order and self.method != "gptq":
            raise ValueError(f"act_order is an option of method 'gptq', method is '{self.method}'")
        if self.sequential and self.method == "rtn":
            raise ValueError("sequential is an option of methods 'gptq' and 'awq', method is 'rtn'")
        fits = self.method == "gptq" or self.sequential
        if not fits and self.damping != type(self).model_fields["damping"].default:
            raise ValueError(
                f"damping is for method 'gptq' and for sequential, method is '{self.method}': set one of them, or leave damping out"
            )
        if self.bias_correction and self.mixed is not None:
            raise ValueError(
                "bias_correction can't be had with mixed, which measures the harm of weights alone: leave one of them out"
            )
        if self.sequential and self.mixed is not None:
            raise ValueError(
                "sequential needs the bits of each layer before the next is measured: leave it out with mixed"
            )
        if self.activations == "int8" and self.unpack == "load":
            raise ValueError(
                "activations 'int8' needs unpack 'run': with 'load' the weights are floats when layers run"
            )
        if self.mixed is not None and self.bits != type(self).model_fields["bits"].default:
            raise ValueError("give bits or mixed, not both: mixed chooses the bits of each layer")
        return self

    @property
    def looks_at_inputs(self) -> bool:
        """Whether rounding depends on what layers multiply."""
        return self.method != "rtn" or self.bias_correction

    @property
    def needs_data(self) -> bool:
        return self.looks_at_inputs or self.mixed is not None

    @property
    def needs_labels(self) -> bool:
        return self.mixed is not None and self.mixed.max_accuracy_drop is not None

    @property
    def uses_sensitivity(self) -> bool:
        return self.mixed is not None
