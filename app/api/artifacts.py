"""Artifacts: the files a job made."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from app import catalogue, db, jobs, tables
from app.accounts import Principal
from app.api import content, pages
from app.api.deps import Db, Me
from app.api.jobs import JobId

router = APIRouter(tags=["artifacts"])

ArtifactId = Annotated[str, Path(max_length=64, description="Id of the artifact.")]


class ArtifactLinks(BaseModel):
    """Where the rest is."""

    content: str = Field(description="The file.")
    job: str = Field(description="The job that made it.")


class ArtifactBody(BaseModel):
    """A file a job made."""

    id: str = Field(description="Id of the artifact.")
    job: str = Field(description="Id of the job that made it.")
    name: str = Field(description="File name, unique in the job.")
    format: str = Field(description="'onnx': runs in stock ONNX Runtime.")
    size_bytes: int = Field(description="Bytes of the file.")
    sha256: str = Field(description="SHA-256 of the file, in hex.")
    created_at: datetime = Field(description="When it was stored.")
    links: ArtifactLinks = Field(description="Where the rest is.")

    @classmethod
    def of(cls, artifact: tables.Artifact) -> Self:
        """The answer for a row."""
        links = ArtifactLinks(
            content=f"/v1/artifacts/{artifact.id}/content", job=f"/v1/jobs/{artifact.job_id}"
        )
        return cls(
            id=artifact.id,
            job=artifact.job_id,
            name=artifact.name,
            format=artifact.format,
            size_bytes=artifact.size_bytes,
            sha256=artifact.sha256,
            created_at=artifact.created_at,
            links=links,
        )


class ArtifactPage(BaseModel):
    """All files a job made."""

    items: list[ArtifactBody] = Field(description="The artifacts, by name.")
    next_cursor: str | None = pages.WHOLE


@router.get("/jobs/{job_id}/artifacts")
def list_artifacts(job_id: JobId, session: Db, me: Me) -> ArtifactPage:
    """Lists the files a job made; none before it has succeeded."""
    found = catalogue.artifacts(session, jobs.get(session, me, job_id))
    return ArtifactPage(items=[ArtifactBody.of(artifact) for artifact in found])


@router.get("/artifacts/{artifact_id}")
def read_artifact(artifact_id: ArtifactId, session: Db, me: Me) -> ArtifactBody:
    """Describes an artifact."""
    return ArtifactBody.of(catalogue.artifact(session, me.project_id, artifact_id))


@router.get("/artifacts/{artifact_id}/content", **content.OPENAPI)
async def download_artifact(
    request: Request, artifact_id: ArtifactId, me: Me, _: content.Conditions
) -> Response:
    """Downloads the file; ranges and revalidation work."""
    return await content.respond(request, await run_in_threadpool(_file, me, artifact_id))


@router.head("/artifacts/{artifact_id}/content", **content.OPENAPI)
async def describe_artifact_file(
    request: Request, artifact_id: ArtifactId, me: Me, _: content.Conditions
) -> Response:
    """Answers the headers of a download."""
    return await content.respond(request, await run_in_threadpool(_file, me, artifact_id))


def _file(me: Principal, artifact_id: str) -> content.File:
    with db.transaction() as session:
        return content.file_of(catalogue.artifact(session, me.project_id, artifact_id))
