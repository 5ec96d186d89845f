"""The directory of a job on this machine: made, filled with the order and its files, and removed whatever happens."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.orm import Session

from app import db, sensitivities, settings, storage
from app.claims import Claim
from app.tables import Dataset, Job, Model
from modelpress.spec import order
from modelpress.spec.inspection import DatasetInspection
from modelpress.spec.job import JobRequest
from workers import jobdir

YOUNG_S = 60.0  # a directory this young may be about to be locked

_SUFFIXES = {"npz": "npz", "images": "zip"}
log = structlog.get_logger(__name__)


@contextmanager
def directory(claim: Claim) -> Iterator[Path]:
    """A new directory for an attempt, locked as long as it is in use; it is gone afterwards."""
    path = settings.get().resolved_work_dir.resolve() / f"{claim.job.id}-{claim.fence}"
    path.mkdir(mode=0o700, parents=True)
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    finally:
        jobdir.remove(path)
        os.close(lock)


def remove_orphans() -> int:
    """Removes directories that nobody holds: their workers were killed. Answers how many."""
    removed = 0
    for path in _directories(settings.get().resolved_work_dir):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            if time.time() - path.stat().st_mtime > YOUNG_S:
                _remove_unlocked(path)
                removed += 1
    if removed:
        log.info("removed directories of killed workers", directories=removed)
    return removed


def _directories(parent: Path) -> list[Path]:
    return [path for path in parent.glob("job_*-*") if path.is_dir()] if parent.is_dir() else []


def _remove_unlocked(path: Path) -> None:
    """Raises BlockingIOError where someone holds it."""
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        jobdir.remove(path)
    finally:
        os.close(lock)


def stage(claim: Claim, path: Path, *, sandbox: str) -> None:
    """Fetches the files of a job below `path`, their hashes checked, and writes the order that names them.

    Raises:
        Damaged: a stored file is not what was stored.
        AppError: the store does not answer, or has no such file.
    """
    (path / order.INPUT).mkdir(mode=0o700)
    with db.transaction() as session:
        asked, files = _order(session, claim.job, sandbox)
        known = sensitivities.content(session, claim.job)
    if known is not None and isinstance(asked, order.CompressOrder):
        asked = asked.model_copy(update={"sensitivity": _write_table(path, known)})
    store = storage.get()
    for file in files:
        key = storage.blob_key(claim.job.project_id, file.sha256)
        store.fetch_to_file(key, path / file.path, sha256=file.sha256)
    (path / order.ORDER).write_text(asked.model_dump_json())


def _write_table(path: Path, known: Mapping[str, Any]) -> order.FileRef:
    """Puts sensitivities beside the files of a job."""
    content = json.dumps(known).encode()
    name = order.sensitivity_name(1)
    (path / order.INPUT / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return order.FileRef(path=f"{order.INPUT}/{name}", name=name, sha256=digest)


def _order(
    session: Session, job: Job, sandbox: str
) -> tuple[order.CompressOrder | order.InspectOrder, list[order.FileRef]]:
    if job.kind == "compress":
        return _compress_order(session, job, sandbox)
    if job.kind == "inspect_model":
        model = session.get_one(Model, job.model_id)
        file = _file(model, "file")
        asked = order.InspectOrder(kind="model", file=file, architecture=model.architecture)
        return asked, [file]
    file = _file(session.get_one(Dataset, job.dataset_id), "file")
    return order.InspectOrder(kind="dataset", file=file), [file]


def _compress_order(
    session: Session, job: Job, sandbox: str
) -> tuple[order.CompressOrder, list[order.FileRef]]:
    request = JobRequest.model_validate(job.request)
    model = _onnx_file(session.get_one(Model, job.model_id), "model.onnx")
    models = {
        role: _onnx_file(session.get_one(Model, id_), f"model-{role}.onnx")
        for role, id_ in request.models.items()
    }
    train = _data_file(session, job.dataset_id, "train")
    evaluation = _data_file(session, job.eval_dataset_id, "eval")
    asked = order.CompressOrder(
        model=model,
        models=models,
        data=order.OrderData(
            train=train,
            eval=evaluation,
            eval_fraction=request.data.eval_fraction,
            images=request.data.images,
        ),
        recipe=request.recipe,
        formats=request.formats,
        constraints=request.constraints,
        seed=request.seed,
        device="cuda" if job.queue == "gpu" else "auto",
        sandbox=sandbox,
    )
    return asked, [
        file for file in (model, *models.values(), train, evaluation) if file is not None
    ]


def _data_file(session: Session, dataset_id: str | None, name: str) -> order.FileRef | None:
    if dataset_id is None:
        return None
    row = session.get_one(Dataset, dataset_id)
    format_ = DatasetInspection.model_validate(row.inspection).format
    return _file(row, f"{name}.{_SUFFIXES[format_]}")


def _file(row: Model | Dataset, name: str) -> order.FileRef:
    return order.FileRef(path=f"{order.INPUT}/{name}", name=row.filename, sha256=row.sha256)


def _onnx_file(model: Model, name: str) -> order.FileRef:
    """The model as ONNX: what its inspection made of the upload, where that was in another format."""
    file = _file(model, name)
    return file.model_copy(update={"sha256": model.onnx_sha256 or model.sha256})
