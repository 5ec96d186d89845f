"""Datasets: uploaded samples."""

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
from modelpress.spec.inspection import DatasetInspection
from modelpress.spec.state import Failure

router = APIRouter(prefix="/datasets", tags=["datasets"])

State = Literal["inspecting", "ready", "rejected"]
DatasetId = Annotated[str, Path(max_length=64, description="Id of the dataset.")]


class NewDataset(BaseModel):
    """What to make a dataset of."""

    model_config = ConfigDict(extra="forbid")

    upload: str = Field(max_length=64, description="Id of a completed upload; it is consumed.")
    name: str = Field(
        default="", max_length=200, description="A name for people; empty: that of the file."
    )


class DatasetBody(BaseModel):
    """Uploaded samples. They never change; a worker looks into them before any job may use it."""

    id: str = Field(description="Id of the dataset.")
    name: str = Field(description="A name for people.")
    filename: str = Field(description="What the client called the file.")
    sha256: str = Field(description="SHA-256 of the file, in hex.")
    size_bytes: int = Field(description="Bytes of the file.")
    state: State = Field(
        description="'inspecting' until a worker has looked into it, then 'ready', or 'rejected' with `failure`."
    )
    inspection: DatasetInspection | None = Field(description="What is in it; null until 'ready'.")
    failure: Failure | None = Field(description="Why it was rejected; null unless it was.")
    created_at: datetime = Field(description="When it was made.")

    @classmethod
    def of(cls, dataset: tables.Dataset) -> Self:
        """The answer for a row."""
        return cls.model_validate(dataset, from_attributes=True)


class DatasetPage(BaseModel):
    """Some of the project's datasets, the newest first."""

    items: list[DatasetBody] = Field(description="The datasets.")
    next_cursor: str | None = pages.NEXT


@router.post("", status_code=201)
def create_dataset(body: NewDataset, session: Db, me: Me, response: Response) -> DatasetBody:
    """Makes a dataset of an upload, and has a worker look into it."""
    uploads.keep(me.project_id, body.upload)
    dataset = catalogue.create(
        session, tables.Dataset, me.project_id, upload_id=body.upload, name=body.name
    )
    jobs.enqueue(session, catalogue.inspection(dataset))
    response.headers["Location"] = f"/v1/datasets/{dataset.id}"
    return DatasetBody.of(dataset)


@router.get("")
def list_datasets(
    session: Db,
    me: Me,
    cursor: Cursor = "",
    limit: Limit = 50,
    state: Annotated[State | None, Query(description="Only datasets in this state.")] = None,
) -> DatasetPage:
    """Lists the project's datasets, the newest first."""
    rows = catalogue.page(
        session, tables.Dataset, me.project_id, cursor=cursor, limit=limit + 1, state=state
    )
    shown, next_cursor = pages.split(rows, limit)
    return DatasetPage(items=[DatasetBody.of(row) for row in shown], next_cursor=next_cursor)


@router.get("/{dataset_id}")
def read_dataset(dataset_id: DatasetId, session: Db, me: Me) -> DatasetBody:
    """Describes a dataset."""
    return DatasetBody.of(catalogue.get(session, tables.Dataset, me.project_id, dataset_id))


@router.get("/{dataset_id}/content", **content.OPENAPI)
async def download_dataset(
    request: Request, dataset_id: DatasetId, me: Me, _: content.Conditions
) -> Response:
    """Downloads the file as it was uploaded; ranges and revalidation work."""
    return await content.respond(request, await run_in_threadpool(_file, me, dataset_id))


@router.head("/{dataset_id}/content", **content.OPENAPI)
async def describe_dataset_file(
    request: Request, dataset_id: DatasetId, me: Me, _: content.Conditions
) -> Response:
    """Answers the headers of a download."""
    return await content.respond(request, await run_in_threadpool(_file, me, dataset_id))


def _file(me: Principal, dataset_id: str) -> content.File:
    with db.transaction() as session:
        return content.file_of(catalogue.get(session, tables.Dataset, me.project_id, dataset_id))
