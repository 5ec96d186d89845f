"""Takes a user's request for a job: checked against what the project has, so that no doomed job is queued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import catalogue, errors, fitting, ids, jobs, sensitivities, settings
from app.accounts import Principal
from app.tables import Dataset, Job, Model
from modelpress.spec.constraint import Metric
from modelpress.spec.inspection import DatasetInspection, ModelInspection
from modelpress.spec.job import JobRequest
from modelpress.spec.problem import Problem
from modelpress.spec.state import JobState

_MIN_SAMPLES_TO_SPLIT = 2
_MODELS = "/models/"


@dataclass(frozen=True)
class Inputs:
    """What a request names, found in the project and inspected."""

    model: ModelInspection
    models: Mapping[str, ModelInspection]
    """The other models, by role."""
    train: DatasetInspection | None
    eval: DatasetInspection | None

    @property
    def has_labels(self) -> bool:
        """Whether steps get labels."""
        return self.train is not None and self.train.labels is not None

    @property
    def measured(self) -> DatasetInspection | None:
        """The dataset that quality is measured on, whole or a share of it."""
        return self.eval or self.train


def submit(
    session: Session, principal: Principal, request: JobRequest, *, idempotency_key: str = ""
) -> tuple[Job, bool]:
    """Queues a job and says whether it is new; the same key and request answer the job they made before.

    Raises:
        Unprocessable: the request names what the project lacks, or asks what can't work; each with its pointer.
        Conflict: a model or a dataset is not ready, or the key came with another request before.
        TooMany: the project has as many jobs waiting as it may.
    """
    digest = _digest(request)
    if idempotency_key and (job := _made_before(session, principal, idempotency_key, digest)):
        return job, False
    check(session, principal, request)
    _require_room(session, principal)
    job = _job(principal, request, digest, idempotency_key)
    try:
        with session.begin_nested():
            session.add(job)
    except IntegrityError:  # the same key, at the same moment
        made = _made_before(session, principal, idempotency_key, digest)
        if made is None:
            raise
        return made, False
    jobs.enqueue(session, job)
    return job, True


def check(session: Session, principal: Principal, request: JobRequest) -> Inputs:
    """Judges a request as `submit` does, and changes nothing.

    Raises:
        Unprocessable: see `submit`.
        Conflict: see `submit`.
    """
    inputs = _find(session, principal, request)
    known = sensitivities.problems(session, principal.project_id, request)
    if problems := [*_problems(request, inputs), *known]:
        raise errors.Unprocessable(
            f"the job can't run: {problems[0].reason}", code="unrunnable_job", problems=problems
        )
    return inputs


def warnings(inputs: Inputs) -> list[str]:
    """What the report of such a job will lack."""
    measured = inputs.measured
    if measured is None:
        return ["without data, accuracy and agreement with the uploaded model are not measured"]
    if measured.labels is None:
        return ["without labels, accuracy is not measured; agreement with the uploaded model is"]
    return []


def _find(session: Session, principal: Principal, request: JobRequest) -> Inputs:
    named = {
        "/model": request.model,
        **{f"{_MODELS}{role}": id_ for role, id_ in request.models.items()},
        "/data/train": request.data.train,
        "/data/eval": request.data.eval,
    }
    found: dict[str, Model | Dataset] = {}
    missing = []
    for pointer, id_ in named.items():
        if id_ is None:
            continue
        row = _row(session, pointer, id_)
        if row is None or row.project_id != principal.project_id:
            missing.append(_unknown(pointer, id_))
        else:
            found[pointer] = row
    if missing:
        raise errors.Unprocessable(missing[0].reason, code="not_found", problems=missing)
    for pointer, row in found.items():
        catalogue.require_ready(row, pointer)
    return _inputs(found)


def _row(session: Session, pointer: str, id_: str) -> Model | Dataset | None:
    return session.get(Model, id_) if _is_model(pointer) else session.get(Dataset, id_)


def _is_model(pointer: str) -> bool:
    return pointer == "/model" or pointer.startswith(_MODELS)


def _inputs(rows: Mapping[str, Model | Dataset]) -> Inputs:
    models = {
        pointer: ModelInspection.model_validate(row.inspection)
        for pointer, row in rows.items()
        if _is_model(pointer)
    }
    datasets = {
        pointer: DatasetInspection.model_validate(rows[pointer].inspection)
        for pointer in ("/data/train", "/data/eval")
        if pointer in rows
    }
    return Inputs(
        model=models.pop("/model"),
        models={pointer.removeprefix(_MODELS): found for pointer, found in models.items()},
        train=datasets.get("/data/train"),
        eval=datasets.get("/data/eval"),
    )


def _unknown(pointer: str, id_: str) -> Problem:
    noun = "model" if _is_model(pointer) else "dataset"
    return Problem(
        pointer=pointer,
        code="not_found",
        reason=f"the project has no {noun} {id_!r}",
        hint=f"GET /v1/{noun}s lists them; POST /v1/{noun}s makes one of an upload",
    )


def _problems(request: JobRequest, inputs: Inputs) -> list[Problem]:
    return [
        *_recipe_problems(request, inputs),
        *request.recipe.unused_models(request.models),
        *_data_problems(request, inputs),
        *_constraint_problems(request, inputs),
    ]


def _recipe_problems(request: JobRequest, inputs: Inputs) -> list[Problem]:
    found = request.recipe.problems(
        has_data=inputs.train is not None, has_labels=inputs.has_labels, models=request.models
    )
    return [
        problem.model_copy(update={"pointer": f"/recipe{problem.pointer}"}) for problem in found
    ]


def _data_problems(request: JobRequest, inputs: Inputs) -> list[Problem]:
    images, problems = request.data.images, []
    for pointer, dataset in (("/data/train", inputs.train), ("/data/eval", inputs.eval)):
        if dataset is not None:
            problems += fitting.problems(inputs.model, dataset, images, pointer=pointer)
    if inputs.train and not inputs.eval and inputs.train.samples < _MIN_SAMPLES_TO_SPLIT:
        problems.append(
            Problem(
                pointer="/data/train",
                code="too_few_samples",
                reason=f"the dataset has {inputs.train.samples} samples; "
                f"at least {_MIN_SAMPLES_TO_SPLIT} are needed to keep some for measuring",
                hint="add samples, or a dataset as data.eval",
            )
        )
    return problems


def _constraint_problems(request: JobRequest, inputs: Inputs) -> list[Problem]:
    """A constraint on what the job can't measure would never be met."""
    measured = inputs.measured
    lacking = {
        Metric.ACCURACY: "labels" if measured is None or measured.labels is None else "",
        Metric.AGREEMENT: "data" if measured is None else "",
    }
    return [
        Problem(
            pointer=f"/constraints/{index}/metric",
            code="unmeasurable",
            reason=f"{constraint.metric} can't be measured: the job has no {lacking[constraint.metric]}",
            hint="add a labelled dataset as data.train or data.eval",
        )
        for index, constraint in enumerate(request.constraints)
        if lacking.get(constraint.metric)
    ]


def _require_room(session: Session, principal: Principal) -> None:
    limit = settings.get().queued_per_project
    waiting = session.scalar(
        select(func.count())
        .select_from(Job)
        .where(Job.project_id == principal.project_id, Job.state == JobState.QUEUED)
    )
    if (waiting or 0) >= limit:
        raise errors.TooMany(
            f"the project has {waiting} jobs waiting; the limit is {limit}",
            code="too_many_queued",
            hint="wait until some have run, or cancel some",
            headers={"Retry-After": "60"},
            extra={"limit": limit},
        )


def _made_before(
    session: Session, principal: Principal, idempotency_key: str, digest: str
) -> Job | None:
    job = session.scalars(
        select(Job).where(
            Job.project_id == principal.project_id, Job.idempotency_key == idempotency_key
        )
    ).one_or_none()
    if job is not None and job.request_sha256 != digest:
        raise errors.Conflict(
            f"the Idempotency-Key came with another request before, which made job {job.id!r}",
            code="idempotency_key_reused",
            hint="use a new key for a new request",
        )
    return job


def _digest(request: JobRequest) -> str:
    text = json.dumps(request.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _job(principal: Principal, request: JobRequest, digest: str, idempotency_key: str) -> Job:
    return Job(
        id=ids.new("job"),
        project_id=principal.project_id,
        name=request.name,
        queue=settings.get().job_queue,
        model_id=request.model,
        dataset_id=request.data.train,
        eval_dataset_id=request.data.eval,
        request=request.model_dump(mode="json"),
        request_sha256=digest,
        idempotency_key=idempotency_key or None,
    )
