"""What a worker asks of an engine child, and the files they exchange in a job directory.

JOBDIR/order.json        the order: written by the worker, read by the child
JOBDIR/input/            the user's files, read-only for the child
JOBDIR/work/             scratch of the child
JOBDIR/output/           what the child leaves: report.json, failure.json, artifacts/
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from modelpress.spec.constraint import Constraint
from modelpress.spec.inspection import Architecture
from modelpress.spec.job import MAX_MODELS, Formats, Images
from modelpress.spec.recipe import Recipe
from modelpress.spec.step import Role

ORDER = "order.json"
INPUT = "input"
WORK = "work"
OUTPUT = "output"
REPORT = "output/report.json"
FAILURE = "output/failure.json"
INSPECTION = "output/inspection.json"
CONVERTED = "output/converted.onnx"  # what an upload in another format became
ARTIFACTS = "output/artifacts"
ONNX, PT2, PACKED = "model.onnx", "model.pt2", "model.mpk"  # of the artifacts
SENSITIVITY = "sensitivity"  # of the artifacts, followed by .json
UNPACKED = "output/verify/unpacked.json"  # what came out of the packed one

EXIT_OK = 0
EXIT_FAILED = 10  # failure.json says why


def sensitivity_name(number: int) -> str:
    """Of the artifact with the first, second, ... table of sensitivities that a job measured."""
    return f"{SENSITIVITY}.json" if number == 1 else f"{SENSITIVITY}-{number}.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRef(_Frozen):
    """A file below JOBDIR/input."""

    path: str = Field(
        pattern=r"^input/[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$",
        description="Relative to the job directory.",
    )
    name: str = Field(default="", max_length=255, description="What the user called it.")
    sha256: str = Field(default="", description="SHA-256 in hex, as stored.")


class OrderData(_Frozen):
    """The data of a job."""

    train: FileRef | None = None
    eval: FileRef | None = None
    eval_fraction: float = 0.2
    images: Images = Images()


class CompressOrder(_Frozen):
    """Run a recipe. `python -m workers.engine compress JOBDIR`, then in a fresh process `... verify JOBDIR`."""

    task: Literal["compress"] = "compress"
    model: FileRef
    models: dict[Role, FileRef] = Field(
        default_factory=dict, max_length=MAX_MODELS, description="Other models, by role."
    )
    data: OrderData = OrderData()
    sensitivity: FileRef | None = Field(
        default=None, description="What analyze.sensitivity measured of this model before."
    )
    recipe: Recipe
    formats: Formats = ("onnx",)
    constraints: tuple[Constraint, ...] = ()
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(
        default=0,
        ge=0,
        description="Threads of torch and ONNX Runtime; 0 takes the cores there are.",
    )
    sandbox: str = Field(
        default="none", description="Level of the fence the worker put around the child."
    )


class InspectOrder(_Frozen):
    """Look into an uploaded file. `python -m workers.engine inspect JOBDIR`."""

    task: Literal["inspect"] = "inspect"
    kind: Literal["model", "dataset"]
    file: FileRef
    architecture: Architecture | None = Field(
        default=None, description="What timm calls the network of a model that is weights alone."
    )


Order = Annotated[CompressOrder | InspectOrder, Field(discriminator="task")]
