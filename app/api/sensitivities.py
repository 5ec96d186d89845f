"""Sensitivities: what each layer of a model costs, measured by a job and used by others."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from app import catalogue, sensitivities, tables
from app.api import pages
from app.api.deps import Db, Me
from app.api.models import ModelId
from app.api.pages import Cursor, Limit
from modelpress.spec.sensitivity import Method, Sensitivity

router = APIRouter(tags=["sensitivities"])

SensitivityId = Annotated[str, Path(max_length=64, description="Id of the sensitivities.")]


class SensitivityBody(BaseModel):
    """What a job measured of a model as it was uploaded. It never changes."""

    id: str = Field(description="Id of the sensitivities; a job's request names it.")
    model: str = Field(description="Id of the model.")
    model_sha256: str = Field(description="SHA-256 of its ONNX file, in hex.")
    job: str | None = Field(description="Id of the job that measured it; null once that is gone.")
    methods: tuple[Method, ...] = Field(description="How layers were compressed.")
    layers: int = Field(description="Layers that were measured.")
    samples: int = Field(description="Training samples they were measured on.")
    created_at: datetime = Field(description="When it was measured.")

    @classmethod
    def of(cls, found: tables.Sensitivity, **more: object) -> Self:
        """The answer for a row."""
        return cls.model_validate(
            {
                "id": found.id,
                "model": found.model_id,
                "model_sha256": found.model_sha256,
                "job": found.job_id,
                "methods": found.methods,
                "layers": found.layers,
                "samples": found.samples,
                "created_at": found.created_at,
                **more,
            }
        )


class WholeSensitivityBody(SensitivityBody):
    """The same with the measurements."""

    table: Sensitivity = Field(description="Every measurement.")


class SensitivityPage(BaseModel):
    """Some of a model's sensitivities, the newest first."""

    items: list[SensitivityBody] = Field(description="The sensitivities, without measurements.")
    next_cursor: str | None = pages.NEXT


@router.get("/models/{model_id}/sensitivities")
def list_sensitivities(
    model_id: ModelId, session: Db, me: Me, cursor: Cursor = "", limit: Limit = 50
) -> SensitivityPage:
    """Lists what jobs measured of a model, the newest first."""
    model = catalogue.get(session, tables.Model, me.project_id, model_id)
    rows = sensitivities.page(session, model, cursor=cursor, limit=limit + 1)
    shown, next_cursor = pages.split(rows, limit)
    return SensitivityPage(
        items=[SensitivityBody.of(row) for row in shown], next_cursor=next_cursor
    )


@router.get("/sensitivities/{sensitivity_id}")
def read_sensitivity(sensitivity_id: SensitivityId, session: Db, me: Me) -> WholeSensitivityBody:
    """What was measured, layer by layer."""
    found = sensitivities.get(session, me.project_id, sensitivity_id)
    return WholeSensitivityBody.of(found, table=sensitivities.table(found))


@router.delete(
    "/sensitivities/{sensitivity_id}", status_code=204, responses={204: {"description": "Removed."}}
)
def remove_sensitivity(sensitivity_id: SensitivityId, session: Db, me: Me) -> Response:
    """Removes sensitivities that no waiting or running job uses. The job that measured them stays, and its artifacts."""
    sensitivities.remove(session, me.project_id, sensitivity_id)
    return Response(status_code=204)
