"""Weights of one bit, or of three values."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelpress.spec.distill import Recover, _teaching
from modelpress.spec.step import FineTune, Step

Method = Literal["bwn", "binary_connect", "bnn", "xnor", "ternary"]

_FLOAT_ENDS = ("bwn", "xnor")
_SIGNS_OF_ACTIVATIONS = ("bnn", "xnor")


class BinaryTraining(FineTune):
    """How the network is trained with binary weights. Needs labels."""

    epochs: int = Field(default=20, ge=1, le=10_000, description="Passes over the train split.")


class QuantizeBinary(Step):
    """Weights of one bit (or three values), trained as such; with some methods activations of one bit too."""

    paper: ClassVar[str] = (
        "binary_connect: Courbariaux, Bengio, David: BinaryConnect (arXiv 1511.00363); bnn: Courbariaux, Hubara, Soudry, El-Yaniv, "
        "Bengio: Binarized Neural Networks (arXiv 1602.02830); bwn, xnor: Rastegari, Ordonez, Redmon, Farhadi: XNOR-Net "
        "(arXiv 1603.05279); ternary: Li, Zhang, Liu: Ternary Weight Networks (arXiv 1605.04711)"
    )
    leaves_trainable: ClassVar[bool] = False

    kind: Literal["quantize.binary"] = "quantize.binary"
    method: Method = Field(
        default="bwn",
        description="Signs of weights with a scale for each filter (bwn) or for each layer (binary_connect); signs of weights and of "
        "activations with a scale for each layer (bnn) or for each filter (xnor); or -1, 0 and 1 with a scale for each filter (ternary).",
    )
    float_ends: bool | None = Field(
        default=None,
        description="Leave the first and the last layer in float; null does so with bwn and xnor, as in their paper, and with no other.",
    )
    stochastic: bool = Field(
        default=False,
        description="With binary_connect: train with random signs, the likelier the larger the weight, as noise. The result has "
        "the likeliest signs; the paper's result of such training has real weights, which is no network of one bit.",
    )
    input_scales: bool = Field(
        default=False,
        description="With xnor: multiply products of signs by the mean size of the inputs that the signs were taken of (K in the paper, which the "
        "authors' code leaves out).",
    )
    distill: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the loss that compares class scores with those of the uploaded model; the rest compares them with the labels.",
    )
    temperature: float = Field(
        default=4.0,
        gt=0,
        le=100,
        description="With distill: what class scores are divided by before they are compared.",
    )
    recover: Recover | None = Field(
        default=None,
        description="What training goes by in more detail, instead of distill and temperature.",
    )
    training: BinaryTraining = Field(
        default=BinaryTraining(), description="How the network is trained with binary weights."
    )

    @property
    def needs_data(self) -> bool:
        return True

    @property
    def needs_labels(self) -> bool:
        return _teaching.needs_labels(self.training, self.recover)

    @property
    def needs_models(self) -> tuple[str, ...]:
        return _teaching.roles(self.recover)

    @property
    def leaves_ends(self) -> bool:
        """Whether the first and the last layer stay in float."""
        return self.method in _FLOAT_ENDS if self.float_ends is None else self.float_ends

    @property
    def signs_activations(self) -> bool:
        """Whether activations become signs too."""
        return self.method in _SIGNS_OF_ACTIVATIONS

    @model_validator(mode="after")
    def _noise_has_a_method(self) -> Self:
        if self.stochastic and self.method != "binary_connect":
            raise ValueError(
                f"stochastic is for method 'binary_connect', method is '{self.method}': set another, or leave stochastic out"
            )
        return self

    @model_validator(mode="after")
    def _scales_are_of_signs(self) -> Self:
        if self.input_scales and self.method != "xnor":
            raise ValueError(
                f"input_scales is for method 'xnor', method is '{self.method}': set another, or leave input_scales out"
            )
        return self

    @model_validator(mode="after")
    def _says_once_what_is_learned(self) -> Self:
        if self.recover is not None and self.distill > 0:
            raise ValueError("distill and recover both say what is learned: leave one of them out")
        if self.distill == 0 and self.temperature != type(self).model_fields["temperature"].default:
            raise ValueError(
                f"temperature {self.temperature:g} divides class scores that distill compares, distill is 0: set it, or leave temperature out"
            )
        return self
