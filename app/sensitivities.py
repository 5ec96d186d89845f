"""Sensitivities of models: measured by one job, used by others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, defer

from app import errors, ids
from app.tables import Job, Model, Sensitivity
from modelpress.spec import sensitivity as spec
from modelpress.spec.job import JobRequest
from modelpress.spec.problem import Problem

_POINTER = "/sensitivity"


def row(job: Job, found: spec.Sensitivity) -> Sensitivity:
    """What a job measured of its model as it was uploaded."""
    return Sensitivity(
        id=ids.new("sns"),
        project_id=job.project_id,
        model_id=job.model_id,
        job_id=job.id,
        model_sha256=found.model_sha256,
        methods=list(found.methods),
        layers=len(found.layers),
        samples=found.samples,
        content=found.model_dump(mode="json"),
    )


def get(session: Session, project_id: str, sensitivity_id: str) -> Sensitivity:
    """Sensitivities of a project.

    Raises:
        NotFound: the project has none of that id.
    """
    found = session.get(Sensitivity, sensitivity_id)
    if found is None or found.project_id != project_id:
        raise errors.NotFound(f"there are no sensitivities {sensitivity_id[:64]!r}")
    return found


def page(
    session: Session, model: Model, *, cursor: str = "", limit: int = 50
) -> Sequence[Sensitivity]:
    """Those of a model, the newest first, without their tables; with `cursor`, those after the one of that id."""
    found = (
        select(Sensitivity)
        .options(defer(Sensitivity.content, raiseload=True))
        .where(Sensitivity.model_id == model.id)
    )
    if cursor:
        found = found.where(Sensitivity.id < cursor)
    return session.scalars(found.order_by(Sensitivity.id.desc()).limit(limit)).all()


def table(found: Sensitivity) -> spec.Sensitivity:
    """What was measured."""
    return spec.Sensitivity.model_validate(found.content)


def content(session: Session, job: Job) -> dict[str, Any] | None:
    """The table that a job was asked to use, as its engine reads it."""
    asked = job.request.get("sensitivity")
    return None if asked is None else session.get_one(Sensitivity, asked).content


def problems(session: Session, project_id: str, request: JobRequest) -> list[Problem]:
    """Why a job can't use the sensitivities that it names; empty when it can, or names none."""
    if request.sensitivity is None:
        return []
    found = session.get(Sensitivity, request.sensitivity)
    if found is None or found.project_id != project_id:
        return [
            _problem(
                "not_found",
                f"the project has no sensitivities {request.sensitivity!r}",
                "GET /v1/models/{id}/sensitivities lists them; a job with analyze.sensitivity measures them",
            )
        ]
    model = session.get_one(Model, request.model)
    if reason := table(found).unlike(model.onnx_sha256 or model.sha256):
        hint = f"measure model {request.model!r} with analyze.sensitivity"
        return [_problem("other_model", reason, hint)]
    if not request.recipe.uses_sensitivity:
        return [
            _problem(
                "unused_sensitivity",
                "no step of the recipe uses sensitivities of the model as it was uploaded",
                "leave them out, or use quantize.bits with mixed or prune.channels with scope 'sensitivity' before others change the model",
            )
        ]
    return []


def _problem(code: str, reason: str, hint: str) -> Problem:
    return Problem(pointer=_POINTER, code=code, reason=reason, hint=hint)
