"""What the server answers with, as the client sees it: frozen, and deaf to fields a newer server may add."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from modelpress.spec.constraint import Constraint
from modelpress.spec.inspection import DatasetInspection, ModelInspection
from modelpress.spec.job import Data, Limits
from modelpress.spec.progress import Progress
from modelpress.spec.recipe import Recipe
from modelpress.spec.sensitivity import Sensitivity as Table
from modelpress.spec.state import TERMINAL, Failure, JobState, Outcome


class Resource(BaseModel):
    """Base of all."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Identified(Resource):
    """A thing with an id that other requests refer to."""

    id: str


T = TypeVar("T", bound=BaseModel)


class Page(Resource, Generic[T]):
    """Part of a list, and the cursor of the next part."""

    items: tuple[T, ...]
    next_cursor: str | None = None


class Upload(Identified):
    """Bytes on their way in; `sha256` is known once all have arrived."""

    state: str
    size_bytes: int
    offset_bytes: int
    filename: str = ""
    sha256: str | None = None
    expires_at: datetime | None = None


class Inspected(Identified):
    """What models and datasets have in common: they are looked into before a job may use them."""

    name: str
    state: str
    sha256: str
    size_bytes: int
    filename: str = ""
    failure: Failure | None = None
    created_at: datetime | None = None


class Model(Inspected):
    """An uploaded network; `inspection` is null until `state` was 'ready' once.

    `onnx_sha256` is the file that jobs use, where the upload was converted to ONNX. `architecture` is what timm calls the
    network of a file that is weights alone.
    """

    architecture: str | None = None
    onnx_sha256: str | None = None
    onnx_size_bytes: int | None = None
    inspection: ModelInspection | None = None


class Dataset(Inspected):
    """Uploaded samples; `inspection` is null until `state` is 'ready'."""

    inspection: DatasetInspection | None = None


class Job(Identified):
    """One run of a recipe on a model, or the inspection of an upload."""

    state: JobState
    name: str = ""
    kind: str = "compress"
    outcome: Outcome | None = None
    model: str | None = None
    models: dict[str, str] = Field(default_factory=dict)
    data: Data | None = None
    sensitivity: str | None = None
    recipe: Recipe | None = None
    formats: tuple[str, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    limits: Limits | None = None
    seed: int | None = None
    progress: Progress | None = None
    failure: Failure | None = None
    attempt: int = 0
    sandbox: str | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cancel_requested_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether the state is final."""
        return self.state in TERMINAL


class Sensitivity(Identified):
    """What a job measured of each layer of a model; `table` has the measurements where one was asked for alone."""

    model: str
    model_sha256: str
    job: str | None = None
    methods: tuple[str, ...] = ()
    layers: int = 0
    samples: int = 0
    table: Table | None = None
    created_at: datetime | None = None


class Attempt(Resource):
    """One try of a job by one worker; `ended` is null while it runs."""

    number: int
    worker: str
    sandbox: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    ended: str | None = None
    failure: Failure | None = None
    log_tail: str | None = None


class Event(Resource):
    """Something that happened to a job: type 'state', 'progress' or 'stage'."""

    id: int
    type: str
    data: dict[str, Any]
    created_at: datetime | None = None


class Artifact(Identified):
    """A file a job made."""

    name: str
    format: str
    size_bytes: int
    sha256: str
    job: str | None = None
    created_at: datetime | None = None


class StepInfo(Resource):
    """A kind of step that a recipe may contain."""

    kind: str
    family: str
    paper: str
    doc: str
    options: dict[str, Any] = Field(default={}, alias="schema")  # JSON Schema of the step
    defaults: dict[str, Any] = {}


class Key(Identified):
    """An API key; `secret` is there only in the answer that made it."""

    name: str
    admin: bool = False
    secret: str | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class Project(Identified):
    """Owner of everything else."""

    name: str
    created_at: datetime | None = None


class Version(Resource):
    """What the server runs."""

    version: str


class Plan(Resource):
    """Answer to a dry run: what the job would do."""

    recipe: Recipe
    warnings: tuple[str, ...] = ()
