"""Weights that share a few values."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelpress.spec.distill import Recover, _teaching
from modelpress.spec.step import FineTune, Step

MAX_BITS = 8
PAPER_BITS, PAPER_CONV_BITS = 5, 8


class LayerBits(BaseModel):
    """A number of bits of their own for some layers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: str = Field(
        min_length=1,
        max_length=256,
        description="Names of weights or nodes; * and ? match as in file names.",
    )
    bits: int = Field(
        ge=1, le=MAX_BITS, description="Bits of the code of each weight of each of them."
    )


class CentroidTraining(FineTune):
    """How shared values are trained, with everything else that is not shared. Needs labels."""

    learning_rate: float = Field(
        default=1e-3,
        gt=0,
        le=10,
        description="Peak learning rate; decays to zero by a cosine. The gradient of a shared value is the sum over all weights "
        "that share it: with sgd a rate for single weights is far too high.",
    )


class QuantizeCluster(Step):
    """Lets the weights of a layer share a few values, found by k-means: a table, and a small code for each weight."""

    paper: ClassVar[str] = (
        "Han, Mao, Dally: Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman Coding "
        "(arXiv 1510.00149, section 3)"
    )
    leaves_trainable: ClassVar[bool] = False

    kind: Literal["quantize.cluster"] = "quantize.cluster"
    bits: int = Field(
        default=PAPER_BITS,
        ge=1,
        le=MAX_BITS,
        description="Bits of a code: a layer has at most 2^bits values, zero among them where weights were pruned.",
    )
    conv_bits: int = Field(
        default=PAPER_CONV_BITS, ge=1, le=MAX_BITS, description="The same for convolutions."
    )
    bias_bits: int | None = Field(
        default=None,
        ge=1,
        le=MAX_BITS,
        description="Bits of a code of each bias, which then share values too, layer by layer; null leaves biases as they are.",
    )
    overrides: tuple[LayerBits, ...] = Field(
        default=(),
        max_length=256,
        description="Layers with bits of their own, the first match of each.",
    )
    scope: Literal["layer", "global"] = Field(
        default="layer",
        description="One table for each layer, or one for all layers of the same bits.",
    )
    initialization: Literal["linear", "density", "random", "optimal"] = Field(
        default="linear",
        description="Where k-means begins: values evenly spread over the range, which keeps the rare large weights; "
        "at even shares of the weights; at random weights; or where the error is least (found by dynamic programming).",
    )
    fine_tune: CentroidTraining | None = Field(
        default=None,
        description="Training of the shared values; null leaves them as k-means found them.",
    )

    recover: Recover | None = Field(
        default=None,
        description="What fine_tune goes by: teachers, such as the uploaded model; null goes by labels.",
    )

    @property
    def needs_data(self) -> bool:
        return self.fine_tune is not None

    @property
    def needs_labels(self) -> bool:
        return _teaching.needs_labels(self.fine_tune, self.recover)

    @property
    def needs_models(self) -> tuple[str, ...]:
        return _teaching.roles(self.recover)

    @model_validator(mode="after")
    def _recovery_trains(self) -> Self:
        _teaching.check_trains(self.fine_tune, self.recover)
        return self
