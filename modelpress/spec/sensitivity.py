"""How sensitive a network is: what it answers with one layer alone compressed, by each method and amount.

Measured by `analyze.sensitivity`, kept by the service as a resource, and read by steps that would have to measure it themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
MAX_LAYERS, MAX_ROWS = 10_000, 100_000

Method = Literal["bits", "int8", "magnitude", "channels", "low_rank"]
Metric = Literal["error", "agreement", "accuracy"]


class Amounts(NamedTuple):
    """What the amount of a method is, which ones are measured where nobody says, and between which it lies."""

    unit: str
    usual: tuple[float, ...]
    least: float
    most: float
    is_whole: bool = False


METHODS: Mapping[Method, Amounts] = {
    "bits": Amounts("bits of a weight", (2, 3, 4, 6, 8), 2, 8, is_whole=True),
    "int8": Amounts("bits of a weight and of an input", (8,), 8, 8, is_whole=True),
    "magnitude": Amounts("fraction of weights zero", (0.5, 0.7, 0.8, 0.9, 0.95), 0.01, 0.99),
    "channels": Amounts("fraction of channels removed", (0.125, 0.25, 0.5, 0.75), 0.01, 0.99),
    "low_rank": Amounts("fraction of the rank kept", (0.1, 0.25, 0.5, 0.75), 0.01, 1),
}
"""Every method; what it does to a layer is in workers/engine/passes/analyze/_methods.py."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Layer(_Frozen):
    """A layer that was measured."""

    name: str = Field(max_length=1024, description="Name of its weight.")
    kind: str = Field(max_length=64, description="'Conv', 'ConvTranspose', 'Gemm' or 'MatMul'.")
    shape: tuple[int, ...] = Field(max_length=16, description="Of the weight.")


class Measurement(_Frozen):
    """The network with one layer compressed, all others as they were."""

    layer: str = Field(max_length=1024, description="Name of the layer's weight.")
    method: Method = Field(description="How it was compressed.")
    amount: float = Field(description="How far; what it counts depends on the method.")
    joined: tuple[str, ...] = Field(
        default=(), max_length=1024, description="Layers whose channels go with those of this one."
    )
    bytes_before: int = Field(
        ge=0, description="Bytes of the weights that change, as float32 or what they were."
    )
    bytes_after: int = Field(
        ge=0,
        description="Bytes they take then: codes and scales; non-zero weights and a bit for each place; what is left of the "
        "channels; two factors.",
    )
    macs_before: int | None = Field(
        default=None,
        ge=0,
        description="Multiply-accumulates of one sample in the nodes that compute less; null where none does.",
    )
    macs_after: int | None = Field(default=None, ge=0, description="The same afterwards.")
    error: float = Field(
        ge=0,
        allow_inf_nan=False,
        description="Norm of the change of all outputs over the norm of the outputs.",
    )
    agreement: float | None = Field(
        ge=0,
        le=1,
        description="Fraction of samples whose top class stays; null where no output scores classes.",
    )
    accuracy: float | None = Field(
        ge=0, le=1, description="Top-1 accuracy on these samples; null without labels."
    )


class Sensitivity(_Frozen):
    """What each layer costs the network, by method and amount."""

    schema_version: int = Field(default=SCHEMA_VERSION, description="Version of this layout.")
    model_sha256: str = Field(
        max_length=64, description="SHA-256 of the ONNX file of the model, in hex."
    )
    after: tuple[str, ...] = Field(
        default=(),
        max_length=64,
        description="Kinds of the steps that had changed the model before it was measured; empty where it is the model as uploaded.",
    )
    seed: int = Field(ge=0, description="Seed of the choice of samples.")
    samples: int = Field(ge=1, description="Training samples it was measured on.")
    group_size: int | None = Field(
        description="With 'bits': inputs of one output that share a scale; null: all of them."
    )
    accuracy: float | None = Field(
        ge=0,
        le=1,
        description="Top-1 accuracy of the network as it was, on these samples; null without labels.",
    )
    layers: tuple[Layer, ...] = Field(
        min_length=1,
        max_length=MAX_LAYERS,
        description="The layers, in the order in which they run.",
    )
    rows: tuple[Measurement, ...] = Field(
        min_length=1, max_length=MAX_ROWS, description="The measurements, by method, then by layer."
    )

    @property
    def metric(self) -> Metric:
        """What is most telling of what was measured: accuracy, else agreement, else the error."""
        first = self.rows[0]
        if first.accuracy is not None:
            return "accuracy"
        return "agreement" if first.agreement is not None else "error"

    @property
    def methods(self) -> tuple[Method, ...]:
        """Those that were measured, in order."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    def lines(self, method: Method) -> dict[str, list[Measurement]]:
        """What was measured with a method: by layer, the smallest amount first."""
        found: dict[str, list[Measurement]] = {}
        for row in self.rows:
            if row.method == method:
                found.setdefault(row.layer, []).append(row)
        return {name: sorted(rows, key=lambda r: r.amount) for name, rows in found.items()}

    def errors(self, method: Method) -> dict[str, dict[float, float]]:
        """The relative error of the outputs by layer and amount."""
        return {n: {r.amount: r.error for r in rows} for n, rows in self.lines(method).items()}

    def unlike(self, model_sha256: str) -> str:
        """Why this says nothing of a model as it was uploaded; '' where it is about that."""
        if self.model_sha256 != model_sha256:
            return (
                f"the sensitivities are those of the model with SHA-256 {self.model_sha256[:12]}..., "
                f"this one's is {model_sha256[:12]}..."
            )
        if self.after:
            return f"the sensitivities were measured after {', '.join(self.after)} had changed the model"
        return ""

    def missing(
        self, method: Method, shapes: Mapping[str, Sequence[int]], amounts: Collection[float]
    ) -> str:
        """What of these layers, with weights of these shapes, was not measured at these amounts; '' where all was."""
        known = {layer.name: layer.shape for layer in self.layers}
        errors = self.errors(method)
        for name, shape in shapes.items():
            if name not in errors:
                return f"'{name}' was not measured with '{method}'"
            if tuple(shape) != known[name]:
                return f"'{name}' was measured with the shape {list(known[name])}, it has {list(shape)}"
            if lacking := sorted(set(amounts) - set(errors[name])):
                return f"'{name}' was not measured at {', '.join(f'{a:g}' for a in lacking)} {METHODS[method].unit}"
        return ""
