"""What a user submits: a model, data, a recipe and limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from modelpress.spec import named
from modelpress.spec.constraint import Constraint
from modelpress.spec.recipe import Recipe
from modelpress.spec.step import Role

GIB = 1 << 30

Format = Literal["onnx", "pt2"]
MAX_MODELS = 8

ModelId = Annotated[str, StringConstraints(max_length=64)]

RecipeOrName = Annotated[
    Recipe, BeforeValidator(named.resolve, json_schema_input_type=Recipe | str)
]


class Images(BaseModel):
    """How images become arrays: RGB or grey as the model's channels ask, resized to its height and width
    (bilinear, aspect not kept), divided by 255, then (x - mean) / std for each channel, laid out as the input is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[float, ...] = Field(
        default=(0.0,),
        min_length=1,
        max_length=4,
        description="Mean of each channel, or one for all.",
    )
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        default=(1.0,),
        min_length=1,
        max_length=4,
        description="Standard deviation of each channel, or one for all; above 0.",
    )


class Data(BaseModel):
    """Which datasets a job uses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str | None = Field(
        default=None,
        max_length=64,
        description="Id of the dataset that steps learn from and calibrate on.",
    )
    eval: str | None = Field(
        default=None,
        max_length=64,
        description="Id of the dataset that is measured on; null splits it off the train dataset.",
    )
    eval_fraction: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Without an eval dataset: the seeded share of the train dataset kept for measuring.",
    )
    images: Images = Field(
        default=Images(), description="How images become arrays; without effect on arrays."
    )


class Limits(BaseModel):
    """When to give up."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_runtime_s: int = Field(
        default=6 * 3600,
        ge=1,
        le=14 * 86_400,
        description="Seconds of running, all attempts together.",
    )
    max_pending_s: int = Field(
        default=7 * 86_400, ge=1, le=30 * 86_400, description="Seconds of waiting for a worker."
    )
    max_memory_bytes: int = Field(
        default=8 * GIB, ge=256 << 20, le=1 << 44, description="Resident memory of the child."
    )
    max_disk_bytes: int = Field(
        default=32 * GIB, ge=16 << 20, le=1 << 44, description="Files the child may hold at once."
    )


def _with_onnx(formats: tuple[Format, ...]) -> tuple[Format, ...]:
    """ONNX first, and each format once: it is what is measured, whatever else is asked for."""
    return tuple(dict.fromkeys(("onnx", *formats)))


Formats = Annotated[tuple[Format, ...], AfterValidator(_with_onnx)]


class JobRequest(BaseModel):
    """The body of POST /v1/jobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="", max_length=200, description="A name for people; has no effect.")
    model: ModelId = Field(description="Id of the model.")
    models: dict[Role, ModelId] = Field(
        default_factory=dict,
        max_length=MAX_MODELS,
        description="Ids of other models that steps make use of, by role: 'initial' is the same network before it was trained; "
        "teachers and students have the roles that the recipe names.",
    )
    data: Data = Field(default=Data(), description="Which datasets to use.")
    sensitivity: str | None = Field(
        default=None,
        max_length=64,
        description="Id of sensitivities of the model, which steps then use instead of measuring them again.",
    )
    recipe: RecipeOrName = Field(
        description="A recipe, or the name of one that GET /v1/recipes lists."
    )
    formats: Formats = Field(
        default=("onnx",),
        max_length=4,
        description="What the result is written as: 'onnx' always, and 'pt2' to run and train it in PyTorch.",
    )
    constraints: tuple[Constraint, ...] = Field(
        default=(), max_length=16, description="What the result must satisfy."
    )
    limits: Limits = Field(default=Limits(), description="When to give up.")
    seed: int = Field(default=0, ge=0, lt=1 << 32, description="Seed of every random choice.")
