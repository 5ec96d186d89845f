"""Makes what a test of jobs starts from: a project with an inspected model and dataset, requests, jobs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app import accounts, db, ids, jobs, storage, submissions
from app.accounts import Principal
from app.tables import Dataset, Job, Model
from modelpress.spec import named, order
from modelpress.spec.inspection import DatasetInspection, ModelInspection
from modelpress.spec.job import JobRequest
from modelpress.spec.recipe import Recipe
from modelpress.spec.report import Report
from modelpress.spec.state import Failure, FailureClass
from tests import actor

MODEL_BYTES = b"a model"
DATASET_BYTES = b"a dataset"


def principal(name: str = "tests") -> Principal:
    """Someone with a key of a new project."""
    return keyed(name)[0]


def keyed(name: str = "tests") -> tuple[Principal, str]:
    """The same, and the text of the key."""
    with db.transaction() as session:
        project = accounts.create_project(session, name)
        key, text = accounts.create_key(session, project.id, "key")
        return Principal(project_id=project.id, key_id=key.id, admin=False), text


def model(
    me: Principal,
    *,
    state: str = "ready",
    inspection: ModelInspection = actor.MODEL,
    content: bytes = MODEL_BYTES,
) -> str:
    """The id of a model of the project; its bytes are not stored."""
    with db.transaction() as session:
        row = Model(id=ids.new("mdl"), **_entry(me, "m.onnx", content, state))
        row.inspection = inspection.model_dump(mode="json") if state == "ready" else None
        session.add(row)
        return row.id


def dataset(
    me: Principal, *, state: str = "ready", inspection: DatasetInspection = actor.DATASET
) -> str:
    """The id of a dataset of the project; its bytes are not stored."""
    with db.transaction() as session:
        row = Dataset(id=ids.new("dat"), **_entry(me, "d.npz", DATASET_BYTES, state))
        row.inspection = inspection.model_dump(mode="json") if state == "ready" else None
        session.add(row)
        return row.id


def _entry(me: Principal, filename: str, content: bytes, state: str) -> dict[str, Any]:
    rejected = failure("user_input", "bad_model").model_dump(mode="json", by_alias=True)
    return {
        "project_id": me.project_id,
        "name": filename,
        "filename": filename,
        "sha256": digest(content),
        "size_bytes": len(content),
        "state": state,
        "failure": rejected if state == "rejected" else None,
    }


def store(me: Principal, scratch: Path, *contents: bytes) -> None:
    """Puts bytes into the store, by default those of `model` and `dataset`."""
    for content in contents or (MODEL_BYTES, DATASET_BYTES):
        scratch.mkdir(exist_ok=True)
        path = scratch / "content"
        path.write_bytes(content)
        key = storage.blob_key(me.project_id, digest(content))
        storage.get().put_file(key, path)


def digest(content: bytes) -> str:
    """The SHA-256 that bytes are stored under."""
    return hashlib.sha256(content).hexdigest()


def recipe(act: str = "") -> Recipe:
    """A recipe that needs no data; `act` is what `tests.actor` does."""
    return named.NAMED["int8-dynamic"].model_copy(update={"name": act})


def request(model_id: str, *, act: str = "", **fields: Any) -> JobRequest:
    """A request that nothing is wrong with."""
    body = {"model": model_id, "recipe": recipe(act).model_dump(mode="json"), **fields}
    return JobRequest.model_validate(body)


def job(me: Principal, *, act: str = "", model_id: str = "", **fields: Any) -> str:
    """The id of a new job that waits in the queue."""
    asked = request(model_id or model(me), act=act, **fields)
    with db.transaction() as session:
        return submissions.submit(session, me, asked)[0].id


def inspection(
    me: Principal, kind: str = "model", *, content: bytes = MODEL_BYTES
) -> tuple[str, str]:
    """The ids of a new inspection and of what it looks into."""
    is_model = kind == "model"
    entry = (
        model(me, state="inspecting", content=content)
        if is_model
        else dataset(me, state="inspecting")
    )
    with db.transaction() as session:
        row = Job(
            id=ids.new("job"),
            project_id=me.project_id,
            kind=f"inspect_{kind}",
            queue="ingest",
            model_id=entry if is_model else None,
            dataset_id=None if is_model else entry,
            request={},
            request_sha256="",
        )
        jobs.enqueue(session, row)
        return row.id, entry


def failure(class_: str = "internal", code: str = "made") -> Failure:
    """A failure."""
    return Failure(**{"class": FailureClass(class_)}, code=code, message="made for a test")


def report(session: Session, job_id: str, *, stages: int = 1) -> Report:
    """A partial report of a job."""
    asked = JobRequest.model_validate(session.get_one(Job, job_id).request)
    wanted = order.CompressOrder(
        model=order.FileRef(path="input/model.onnx"), recipe=asked.recipe, seed=asked.seed
    )
    return actor.report(wanted, stages=stages)


def row(job_id: str) -> Job:
    """A job as the database has it now."""
    with db.transaction() as session:
        return session.get_one(Job, job_id)
