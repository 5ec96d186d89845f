"""Whether the service lives, whether it can work, its metrics and its version. These need no key."""

from __future__ import annotations

import platform
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError

import modelpress
from app import broker, db, errors, metrics, schema, storage

router = APIRouter(tags=["health"])


class Live(BaseModel):
    """The process runs and answers."""

    status: Literal["ok"] = Field(default="ok", description="Always 'ok'.")


class Ready(BaseModel):
    """What the service needs, and whether it answers."""

    status: Literal["ok", "degraded", "unavailable"] = Field(
        description="'degraded': jobs are taken, but start only when the broker is back; 'unavailable' comes with 503."
    )
    database: bool = Field(description="Whether the database answers and has the newest tables.")
    storage: bool = Field(description="Whether the store answers.")
    broker: bool = Field(description="Whether the broker answers.")


class Version(BaseModel):
    """What is running."""

    version: str = Field(description="Version of ModelPress.")
    python: str = Field(description="Version of Python.")
    api: Literal["v1"] = Field(default="v1", description="Version of the HTTP interface.")


@router.get("/health/live")
def live() -> Live:
    """Says that the process answers; for the supervisor that restarts it."""
    return Live()


@router.get("/health/ready", responses={503: {"model": Ready, "description": "Can't work."}})
def ready(response: Response) -> Ready:
    """Says whether requests can be served; for the load balancer in front."""
    database, stored, brokered = _database_is_ready(), _store_is_ready(), broker.is_reachable()
    if not (database and stored):
        response.status_code = 503
        status: Literal["ok", "degraded", "unavailable"] = "unavailable"
    else:
        status = "ok" if brokered else "degraded"
    return Ready(status=status, database=database, storage=stored, broker=brokered)


def _database_is_ready() -> bool:
    try:
        with db.engine().connect() as connection:
            return schema.is_current(connection)
    except SQLAlchemyError:
        return False


def _store_is_ready() -> bool:
    try:
        storage.get().check()
    except errors.AppError:
        return False
    return True


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."}},
)
def read_metrics() -> Response:
    """Metrics for Prometheus: requests of this process, and jobs, queues and uploads of the service."""
    return Response(metrics.render(), media_type=metrics.CONTENT_TYPE)


@router.get("/version")
def version() -> Version:
    """Says what is running."""
    return Version(version=modelpress.__version__, python=platform.python_version())
