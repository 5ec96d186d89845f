"""What the services raise; app/main.py renders it as problem+json with the status of the class.

AppError
  BadRequest           400  a header or parameter that can't be understood
  Unauthorized         401  no key, or one that does not count
  Forbidden            403  a key that may not do this
  NotFound             404  there is no such thing, or it belongs to another project
  Conflict             409  right in itself, but not in the present state
  Gone                 410  it was there, and was removed
  PreconditionFailed   412  a protocol version we do not speak
  TooLarge             413  over a size limit
  WrongMediaType       415  a body of a type we do not take
  RangeNotSatisfiable  416  bytes that the file does not have
  Unprocessable        422  a body with defects, each with a pointer
  Locked               423  someone else is writing it
  TooMany              429  over a quota
  ChecksumMismatch     460  the bytes that came are not the bytes that were sent (tus)
  Unavailable          503  the database or the store does not answer
  StorageFull          507  no room for the bytes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import ClassVar

from modelpress.spec.errors import ErrorBody
from modelpress.spec.problem import Problem

TITLES = {460: "Checksum Mismatch"}


class AppError(Exception):
    """Base of all: `detail` says what was wrong, the value seen and the limit; `hint` the way out.

    `extra` goes into the body as it is (`limit_bytes=...`); `headers` into the response.
    """

    status: ClassVar[int] = 500
    code: str = "internal"

    def __init__(
        self,
        detail: str,
        *,
        code: str = "",
        hint: str = "",
        problems: Sequence[Problem] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, int | str | None] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail, self.hint, self.problems = detail, hint, list(problems)
        self.code = code or self.code
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    def body(self) -> ErrorBody:
        """The answer's body."""
        return ErrorBody.model_validate(
            {
                **self.extra,
                "title": title(self.status),
                "status": self.status,
                "code": self.code,
                "detail": self.detail,
                "hint": self.hint,
                "problems": self.problems,
            }
        )


def title(status: int) -> str:
    """An HTTP status in words."""
    return TITLES.get(status) or HTTPStatus(status).phrase


class BadRequest(AppError):
    """A header or parameter that can't be understood."""

    status, code = 400, "bad_request"


class Unauthorized(AppError):
    """No key, or one that does not count."""

    status, code = 401, "unauthorized"


class Forbidden(AppError):
    """A key that may not do this."""

    status, code = 403, "forbidden"


class NotFound(AppError):
    """There is no such thing, or it belongs to another project; the answer does not tell which."""

    status, code = 404, "not_found"


class Conflict(AppError):
    """Right in itself, but not in the present state."""

    status, code = 409, "conflict"


class Gone(AppError):
    """It was there, and was removed."""

    status, code = 410, "gone"


class PreconditionFailed(AppError):
    """A protocol version we do not speak."""

    status, code = 412, "precondition_failed"


class TooLarge(AppError):
    """Over a size limit; `extra` has `limit_bytes`."""

    status, code = 413, "too_large"


class WrongMediaType(AppError):
    """A body of a type we do not take."""

    status, code = 415, "wrong_media_type"


class RangeNotSatisfiable(AppError):
    """Bytes that the file does not have."""

    status, code = 416, "range_not_satisfiable"


class Unprocessable(AppError):
    """A body with defects; `problems` has each with its pointer."""

    status, code = 422, "unprocessable"


class Locked(AppError):
    """Someone else is writing it."""

    status, code = 423, "locked"


class TooMany(AppError):
    """Over a quota."""

    status, code = 429, "too_many"


class ChecksumMismatch(AppError):
    """The bytes that came are not the bytes that were sent."""

    status, code = 460, "checksum_mismatch"


class Unavailable(AppError):
    """The database or the store does not answer; worth trying again."""

    status, code = 503, "unavailable"


class StorageFull(AppError):
    """No room for the bytes."""

    status, code = 507, "storage_full"
