"""Models: uploaded networks."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from app import catalogue, db, jobs, tables, uploads
from app.accounts import Principal
from app.api import content, pages
from app.api.deps import Db, Me
from app.api.pages import Cursor, Limit
from modelpress.spec.inspection import Architecture, ModelInspection
from modelpress.spec.state import Failure

router = APIRouter(prefix="/models", tags=["models"])

State = Literal["inspecting", "ready", "rejected"]
ModelId = Annotated[str, Path(max_length=64, description="Id of the model.")]
Format = Annotated[
    Literal["uploaded", "onnx"],
    Query(
        alias="format",
        description="'uploaded': the file as it came; 'onnx': what it was converted to, or itself where it came as ONNX.",
    ),
]


class NewModel(BaseModel):
    """What to make a model of."""

    model_config = ConfigDict(extra="forbid")

    upload: str = Field(max_length=64, description="Id of a completed upload; it is consumed.")
    name: str = Field(
        default="", max_length=200, description="A name for people; empty: that of the file."
    )
    architecture: Architecture | None = Field(
        default=None,
        description="For a state_dict in safetensors, and only there: what timm calls the network that it belongs to, such as 'resnet18'.",
    )


class ModelBody(BaseModel):
    """An uploaded network. Its file never changes; a worker looks into it before any job may use it."""

    id: str = Field(description="Id of the model.")
    name: str = Field(description="A name for people.")
    filename: str = Field(description="What the client called the file.")
    sha256: str = Field(description="SHA-256 of the file, in hex.")
    size_bytes: int = Field(description="Bytes of the file.")
    architecture: str | None = Field(
        description="What timm calls the network, as it was given; null where the file is a whole network."
    )
    state: State = Field(
        description="'inspecting' until a worker has looked into it, then 'ready', or 'rejected' with `failure`; 'inspecting' "
        "again, with what was found before, while a worker looks anew."
    )
    onnx_sha256: str | None = Field(
        description="SHA-256 of the ONNX file that the upload was converted to and that jobs use; null where it is ONNX itself."
    )
    onnx_size_bytes: int | None = Field(description="Bytes of that file.")
    inspection: ModelInspection | None = Field(
        description="What is in it; null until it was 'ready' once."
    )
    failure: Failure | None = Field(description="Why it was rejected; null unless it was.")
    created_at: datetime = Field(description="When it was made.")

    @classmethod
    def of(cls, model: tables.Model) -> Self:
        """The answer for a row."""
        return cls.model_validate(model, from_attributes=True)


class ModelPage(BaseModel):
    """Some of the project's models, the newest first."""

    items: list[ModelBody] = Field(description="The models.")
    next_cursor: str | None = pages.NEXT


@router.post("", status_code=201)
def create_model(body: NewModel, session: Db, me: Me, response: Response) -> ModelBody:
    """Makes a model of an upload, and has a worker look into it."""
    uploads.keep(me.project_id, body.upload)
    model = catalogue.create(
        session,
        tables.Model,
        me.project_id,
        upload_id=body.upload,
        name=body.name,
        architecture=body.architecture,
    )
    jobs.enqueue(session, catalogue.inspection(model))
    response.headers["Location"] = f"/v1/models/{model.id}"
    return ModelBody.of(model)


@router.get("")
def list_models(
    session: Db,
    me: Me,
    cursor: Cursor = "",
    limit: Limit = 50,
    state: Annotated[State | None, Query(description="Only models in this state.")] = None,
) -> ModelPage:
    """Lists the project's models, the newest first."""
    rows = catalogue.page(
        session, tables.Model, me.project_id, cursor=cursor, limit=limit + 1, state=state
    )
    shown, next_cursor = pages.split(rows, limit)
    return ModelPage(items=[ModelBody.of(row) for row in shown], next_cursor=next_cursor)


@router.get("/{model_id}")
def read_model(model_id: ModelId, session: Db, me: Me) -> ModelBody:
    """Describes a model."""
    return ModelBody.of(catalogue.get(session, tables.Model, me.project_id, model_id))


@router.post("/{model_id}", status_code=202)
def inspect_model(model_id: ModelId, session: Db, me: Me, response: Response) -> ModelBody:
    """Has a worker look into a model again, as after an upgrade that knows more steps; `Location` is the job that does.

    Jobs may use what was known of the model until then. Where a worker is about to look anyway, nothing is added.
    """
    model = catalogue.get(session, tables.Model, me.project_id, model_id)
    job, is_new = catalogue.inspect_again(session, model)
    if is_new:
        jobs.enqueue(session, job)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return ModelBody.of(model)


@router.get("/{model_id}/content", **content.OPENAPI)
async def download_model(
    request: Request,
    model_id: ModelId,
    me: Me,
    _: content.Conditions,
    format_: Format = "uploaded",
) -> Response:
    """Downloads the file as it was uploaded, or as the ONNX file that jobs use; ranges and revalidation work."""
    return await content.respond(request, await run_in_threadpool(_file, me, model_id, format_))


@router.head("/{model_id}/content", **content.OPENAPI)
async def describe_model_file(
    request: Request,
    model_id: ModelId,
    me: Me,
    _: content.Conditions,
    format_: Format = "uploaded",
) -> Response:
    """Answers the headers of a download."""
    return await content.respond(request, await run_in_threadpool(_file, me, model_id, format_))


def _file(me: Principal, model_id: str, format_: str) -> content.File:
    with db.transaction() as session:
        model = catalogue.get(session, tables.Model, me.project_id, model_id)
        if format_ == "uploaded":
            return content.file_of(model)
        catalogue.require_ready(model)
        return content.onnx_of(model)
