"""The description of the interface that GET /openapi.json serves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from app.api.problems import MEDIA_TYPE
from modelpress.spec.errors import ErrorBody

DESCRIPTION = (
    "Upload a network and data, submit a recipe, watch it run, read a measured report and download a smaller model. "
    "Every route below /v1 needs `Authorization: Bearer mp_...`. Errors are problem+json with a `code`, a `detail` "
    "and a `hint`. Lists come in pages: pass `next_cursor` back as `cursor`."
)

ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorBody, "description": "No key, or one that does not count."},
    422: {"model": ErrorBody, "description": "Malformed; `problems` has each defect."},
    "4XX": {"model": ErrorBody, "description": "Refused; `code` and `detail` say why."},
    "5XX": {"model": ErrorBody, "description": "A defect, or a part that does not answer."},
}


def operation_id(route: APIRoute) -> str:
    """The endpoint's name, unique over all routers."""
    return route.name


def describe(app: FastAPI) -> None:
    """Makes `app` describe its errors as the problem+json they are."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _with_problems(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    description=app.description,
                    routes=app.routes,
                )
            )
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]


def _with_problems(schema: dict[str, Any]) -> dict[str, Any]:
    for path in schema["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                content = response.get("content", {})
                reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
                if reference.endswith("/ErrorBody"):
                    content[MEDIA_TYPE] = content.pop("application/json")
    return schema
