"""Models and datasets, made of uploads and looked into by a worker before any job may use them; jobs as lists, and what they made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session, defer

from app import errors, ids, uploads
from app.claims import StoredFile
from app.tables import Artifact, Dataset, Job, Model
from modelpress.spec.inspection import DatasetInspection, ModelInspection
from modelpress.spec.state import Failure, JobState

Entry = TypeVar("Entry", Model, Dataset)

_NOUNS = {Model: "model", Dataset: "dataset"}
_PREFIXES = {Model: "mdl", Dataset: "dat"}


def create(
    session: Session,
    kind: type[Entry],
    project_id: str,
    *,
    upload_id: str,
    name: str,
    **more: str | None,
) -> Entry:
    """Makes a model or dataset of an upload that `uploads.keep` has put in its place; `more` are columns of its kind.

    Raises:
        NotFound: the project has no such upload.
        Conflict: the upload is not complete, or was consumed.
    """
    upload = uploads.consume(session, project_id, upload_id)
    assert upload.sha256 is not None
    entry = kind(
        id=ids.new(_PREFIXES[kind]),
        project_id=project_id,
        name=name or upload.filename[:200],
        filename=upload.filename,
        sha256=upload.sha256,
        size_bytes=upload.size_bytes,
        state="inspecting",
        **more,
    )
    session.add(entry)
    session.flush()
    return entry


def inspection(entry: Model | Dataset) -> Job:
    """The job that looks into a new model or dataset; the caller enqueues it in the same transaction."""
    is_model = isinstance(entry, Model)
    return Job(
        id=ids.new("job"),
        project_id=entry.project_id,
        kind="inspect_model" if is_model else "inspect_dataset",
        name=entry.name,
        queue="ingest",
        model_id=entry.id if is_model else None,
        dataset_id=None if is_model else entry.id,
        request={},
        request_sha256=entry.sha256,
    )


def inspect_again(session: Session, model: Model) -> tuple[Job, bool]:
    """The job that looks into a model anew, and whether the caller is to enqueue it: there is one at a time.

    What was found before counts until it ends. A model that was rejected is `inspecting` again.
    """
    session.refresh(model, with_for_update=True)
    if model.state == "inspecting":
        running = select(Job).where(Job.model_id == model.id, Job.kind == "inspect_model")
        return session.scalars(running.order_by(Job.id.desc()).limit(1)).one(), False
    model.state, model.failure = "inspecting", None
    return inspection(model), True


def record_inspection(
    session: Session,
    job: Job,
    found: ModelInspection | DatasetInspection | Failure,
    *,
    converted: StoredFile | None = None,
) -> None:
    """Opens the model or dataset of an inspection to jobs, or rejects it with the reason. One that was open stays open, as it
    was: then only the job of the inspection has the reason.

    `converted` is the ONNX file that the worker made of a model in another format: the one that jobs use.
    """
    entry = subject(session, job)
    if converted is not None:
        assert isinstance(entry, Model), "only models are converted"
        entry.onnx_sha256, entry.onnx_size_bytes = converted.sha256, converted.size_bytes
    if isinstance(found, Failure) and entry.inspection is not None:
        entry.state = "ready"
    elif isinstance(found, Failure):
        entry.state, entry.failure = "rejected", found.model_dump(mode="json", by_alias=True)
    else:
        entry.state, entry.inspection = "ready", found.model_dump(mode="json")


def subject(session: Session, job: Job) -> Model | Dataset:
    """What an inspection looks into."""
    found: Model | Dataset | None
    if job.kind == "inspect_model":
        found = session.get(Model, job.model_id)
    else:
        found = session.get(Dataset, job.dataset_id)
    assert found is not None, "a foreign key leads to it"
    return found


def get(session: Session, kind: type[Entry], project_id: str, entry_id: str) -> Entry:
    """A model or dataset of a project.

    Raises:
        NotFound: the project has none of that id.
    """
    found = session.get(kind, entry_id)
    if found is None or found.project_id != project_id:
        raise errors.NotFound(f"there is no {_NOUNS[kind]} {entry_id[:64]!r}")
    return found


def require_ready(entry: Model | Dataset, pointer: str = "") -> None:
    """Refuses what was not looked into with success; `pointer` leads to it in the request's body.

    Raises:
        Conflict: it is being inspected for the first time, or was rejected.
    """
    noun, where = _NOUNS[type(entry)], {"pointer": pointer} if pointer else {}
    if entry.inspection is not None:
        return
    if entry.state == "rejected":
        why = str((entry.failure or {}).get("message", ""))
        raise errors.Conflict(
            f"{noun} {entry.id!r} was rejected: {why}",
            code=f"{noun}_rejected",
            hint="upload a file without that defect",
            extra=where,
        )
    raise errors.Conflict(
        f"{noun} {entry.id!r} is still being inspected",
        code=f"{noun}_not_ready",
        hint=f"ask again when GET /v1/{noun}s/{entry.id} says 'ready'",
        extra=where,
    )


def page(
    session: Session,
    kind: type[Entry],
    project_id: str,
    *,
    cursor: str = "",
    limit: int = 50,
    state: str | None = None,
) -> Sequence[Entry]:
    """A project's models or datasets, the newest first; with `cursor`, those after the one of that id."""
    found = select(kind).where(kind.project_id == project_id)
    if cursor:
        found = found.where(kind.id < cursor)
    if state is not None:
        found = found.where(kind.state == state)
    return session.scalars(found.order_by(kind.id.desc()).limit(limit)).all()


def jobs(
    session: Session,
    project_id: str,
    *,
    cursor: str = "",
    limit: int = 50,
    kind: str = "compress",
    state: JobState | None = None,
    model: str = "",
) -> Sequence[Job]:
    """A project's jobs of a kind, the newest first, without reports; with `cursor`, those after the job of that id."""
    found = (
        select(Job)
        .options(defer(Job.report, raiseload=True))
        .where(Job.project_id == project_id, Job.kind == kind)
    )
    if cursor:
        found = found.where(Job.id < cursor)
    if state is not None:
        found = found.where(Job.state == state)
    if model:
        found = found.where(Job.model_id == model)
    return session.scalars(found.order_by(Job.id.desc()).limit(limit)).all()


def artifacts(session: Session, job: Job) -> Sequence[Artifact]:
    """The files a job made, by name."""
    mine = select(Artifact).where(Artifact.job_id == job.id)
    return session.scalars(mine.order_by(Artifact.name)).all()


def artifact(session: Session, project_id: str, artifact_id: str) -> Artifact:
    """A file that a job of the project made.

    Raises:
        NotFound: the project has none of that id.
    """
    found = session.get(Artifact, artifact_id)
    if found is None or found.project_id != project_id:
        raise errors.NotFound(f"there is no artifact {artifact_id[:64]!r}")
    return found
