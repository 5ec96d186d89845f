"""Every error as problem+json (RFC 9457), whoever raised it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic_core import ErrorDetails
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app import errors
from app.api import requests
from modelpress.spec import problem
from modelpress.spec.errors import ErrorBody
from modelpress.spec.problem import Problem, Refused

MEDIA_TYPE = "application/problem+json"
_CODES = {404: "not_found", 405: "method_not_allowed"}
log = structlog.get_logger(__name__)


def register(app: FastAPI) -> None:
    """Makes `app` answer every exception with a problem."""
    app.add_exception_handler(errors.AppError, _ours)
    app.add_exception_handler(requests.BodyTooLarge, _too_large)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OperationalError, _database)
    app.add_exception_handler(PoolTimeout, _database)
    app.add_exception_handler(Exception, _defect)


def answer(error: errors.AppError) -> Response:
    """The response an error of ours is."""
    return _response(error.body(), error.headers)


def _response(body: ErrorBody, headers: Mapping[str, str]) -> Response:
    return Response(
        body.model_dump_json(), body.status, headers=dict(headers), media_type=MEDIA_TYPE
    )


async def _ours(_request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.AppError)
    return answer(error)


async def _too_large(_request: Request, error: Exception) -> Response:
    assert isinstance(error, requests.BodyTooLarge)
    return answer(error.error)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return answer(_unprocessable(error.problems))


async def _malformed(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details: Sequence[ErrorDetails] = error.errors()
    body = [d for d in details if _is_of_body(d)]
    for detail in body:
        detail["loc"] = detail["loc"][1:]
    problems = [
        *map(_not_of_body, (d for d in details if d not in body)),
        *problem.from_details(body),
    ]
    return answer(_unprocessable(problems[: problem.MAX_PROBLEMS]))


def _is_of_body(detail: ErrorDetails) -> bool:
    return detail["loc"][0] == "body" and detail["type"] != "json_invalid"


def _not_of_body(detail: ErrorDetails) -> Problem:
    """What is wrong with a parameter, or with a body that can't be read at all."""
    place, name = detail["loc"][:2]
    if detail["type"] == "json_invalid":
        reason = f"the body is not JSON: {detail['ctx']['error']} at character {name}"
        return Problem(pointer="", code="not_json", reason=reason)
    [found] = problem.from_details([{**detail, "loc": (name,)}])
    named = f"{place} parameter {name!r}: {found.reason}"
    return found.model_copy(update={"pointer": "", "reason": named})


def _unprocessable(problems: list[Problem]) -> errors.Unprocessable:
    first = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    where = f"{first.pointer}: " if first.pointer else ""
    return errors.Unprocessable(f"{where}{first.reason}{more}", hint=first.hint, problems=problems)


async def _http(request: Request, error: Exception) -> Response:
    """What Starlette raises by itself: no such route, no such method."""
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {request.url.path}: {error.detail}"
    body = ErrorBody(
        title=errors.title(error.status_code),
        status=error.status_code,
        code=_CODES.get(error.status_code, "http_error"),
        detail=detail,
    )
    return _response(body, error.headers or {})


async def _database(_request: Request, error: Exception) -> Response:
    log.warning("the database does not answer", error=str(error).splitlines()[0])
    unavailable = errors.Unavailable(
        "the database does not answer", hint="try again", headers={"Retry-After": "5"}
    )
    return answer(unavailable)


async def _defect(request: Request, error: Exception) -> Response:
    request_id = request.state.request_id
    log.error("unhandled exception", exc_info=error, request_id=request_id)
    defect = errors.AppError(
        "an error in the service itself",
        hint="please report it, with the request id",
        extra={"request_id": request_id},
        headers={"X-Request-Id": request_id},
    )
    return answer(defect)
