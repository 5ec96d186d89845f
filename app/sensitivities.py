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
from modelpress.spec.state import TERMINAL

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


def remove(session: Session, project_id: str, sensitivity_id: str) -> None:
    """Removes sensitivities; jobs that measured or used them stay, with their artifacts.

    Raises:
        NotFound: the project has none of that id.
        Conflict: a job that is not over uses them.
    """
    found = get(session, project_id, sensitivity_id)
    session.refresh(found, with_for_update=True)
    if job_id := _user(session, found):
        raise errors.Conflict(
            f"job {job_id!r} uses sensitivities {found.id!r} and is not over",
            code="sensitivity_in_use",
            hint=f"wait until it has ended, or stop it with POST /v1/jobs/{job_id}:cancel",
        )
    session.delete(found)


def _user(session: Session, found: Sensitivity) -> str | None:
    """The oldest job that waits or runs with them."""
    using = select(Job.id).where(
        Job.project_id == found.project_id,
        Job.state.not_in(TERMINAL),
        Job.request["sensitivity"].as_string() == found.id,
    )
    return session.scalars(using.order_by(Job.id).limit(1)).one_or_none()


def table(found: Sensitivity) -> spec.Sensitivity:
    """What was measured."""
    return spec.Sensitivity.model_validate(found.content)


def content(session: Session, job: Job) -> dict[str, Any] | None:
    """The table that a job was asked to use, as its engine reads it."""
    asked = job.request.get("sensitivity")
    return None if asked is None else session.get_one(Sensitivity, asked).content


def problems(session: Session, project_id: str, request: JobRequest) -> list[Problem]:
    """Why a job can't use the sensitivities that it names; empty when it can, or names none.

    They can't be removed before the caller's transaction ends.
    """
    if request.sensitivity is None:
        return []
    held = {"read": True, "key_share": True}
    found = session.get(Sensitivity, request.sensitivity, with_for_update=held)
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
