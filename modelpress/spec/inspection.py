"""What a worker found in an uploaded file, before any job may use it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Architecture = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=128)
]
"""What timm calls a network: 'resnet18', or 'resnet18.a1_in1k'; whether there is one, a worker finds out."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class TensorInfo(_Frozen):
    """An input or output of a model, or an array of a dataset."""

    name: str = Field(description="Name in the file.")
    dtype: str = Field(description="Element type as numpy names it: 'float32'.")
    shape: tuple[int | str | None, ...] = Field(
        description="Sizes; a name for a symbolic dimension, null for an unknown one."
    )


class Layers(_Frozen):
    """Layers of which the same holds."""

    what: str = Field(description="What a step could do to them, or why it would leave them alone.")
    names: tuple[str, ...] = Field(
        description="Names of weights or nodes, the first of them; channels that go together are one entry."
    )
    count: int = Field(description="How many there are.")


class StepCapability(_Frozen):
    """What one kind of step, with its default options, could do to a model."""

    ok: bool | None = Field(
        description="Whether it could change anything; null where that was not determined."
    )
    reason: str = Field(default="", description="Why not, or why that is not known.")
    can: tuple[Layers, ...] = Field(default=(), description="What it could change.")
    cannot: tuple[Layers, ...] = Field(
        default=(), description="What it would leave alone, and why."
    )


class Capability(_Frozen):
    """What a family of steps could do to a model."""

    ok: bool | None = Field(
        description="Whether any step of the family could change anything; null where that was not determined."
    )
    reason: str = Field(default="", description="Why not, or why that is not known.")
    steps: dict[str, StepCapability] = Field(
        default_factory=dict, description="The same for each kind of step."
    )


class ModelInspection(_Frozen):
    """What is in a model."""

    format: Literal["onnx", "onnx_zip", "pt2", "safetensors"] = Field(
        description="Format of the file: 'onnx'; 'onnx_zip', a zip of an ONNX model and the files that hold its weights, "
        "which became one file; 'pt2' of torch.export, or 'safetensors' with the name of an architecture, which were converted to ONNX."
    )
    opset: int = Field(description="Version of the default ONNX operator set.")
    producer: str = Field(default="", description="What exported it, as the file says.")
    inputs: tuple[TensorInfo, ...] = Field(description="Inputs, in order.")
    outputs: tuple[TensorInfo, ...] = Field(description="Outputs, in order.")
    parameters: int = Field(
        description="Elements of all weight tensors, as in a report; running statistics are none."
    )
    macs: int | None = Field(
        description="Multiply-accumulates for a batch of 1; null where shapes are unknown."
    )
    operators: dict[str, int] = Field(description="How often each operator occurs.")
    unsupported: tuple[str, ...] = Field(
        default=(), description="Operators that no step can run; empty in a usable model."
    )
    notes: tuple[str, ...] = Field(
        default=(), description="What a reader should know, such as a batch size that is fixed."
    )
    capabilities: dict[str, Capability] = Field(
        default_factory=dict,
        description="What each family of steps could do: 'prune', 'distill', 'quantize', 'rewrite', 'dynamic'. Empty for models "
        "that were looked into before there were capabilities.",
    )


class DatasetInspection(_Frozen):
    """What is in a dataset."""

    format: Literal["npz", "images"] = Field(
        description="'npz', or 'images' for a zip of image folders."
    )
    samples: int = Field(description="Samples.")
    arrays: tuple[TensorInfo, ...] = Field(
        description="Arrays by input name, the first dimension being samples; without labels."
    )
    labels: TensorInfo | None = Field(description="The labels; null where there are none.")
    classes: tuple[str, ...] = Field(
        default=(), description="Class names in label order; names of the folders, for images."
    )
    histogram: tuple[int, ...] = Field(
        default=(), description="Samples of each class, in label order."
    )
    notes: tuple[str, ...] = Field(
        default=(), description="What a reader should know, such as rare classes."
    )
