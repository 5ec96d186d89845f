"""What the client raises.

ModelPressError
  Unreachable         no server is known, or the one that is gave no answer
  UnexpectedAnswer    an answer that this version of the client can't read
  Rejected            the server answered with an error; `body` says which
    Unauthorized      401, 403: the key is missing, wrong, expired or revoked
    NotFound          404: no such thing in the project of this key
    Conflict          409: right request, wrong moment
    TooLarge          413: over a limit of the server
    Invalid           422: `body.problems` lists every defect with its JSON pointer
    Locked            423: another request is writing to the upload
    TooMany           429: slow down, or wait for jobs to end
    ServerFailed      5xx: not the caller's fault
  ChecksumMismatch    bytes changed on their way
  InspectionFailed    a model or dataset was refused by the worker that opened it; `failure` says why
  JobFailed           a job ended without success; `job` says how
  WaitTimeout         the caller's own time limit passed; the job goes on
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpress.spec.errors import ErrorBody
from modelpress.spec.state import Failure

if TYPE_CHECKING:
    from modelpress.resources import Job


class ModelPressError(Exception):
    """Base of everything the client raises on purpose."""


class Unreachable(ModelPressError):
    """No server is known, or the one that is gave no answer."""


class UnexpectedAnswer(ModelPressError):
    """An answer that this version of the client can't read."""


class Rejected(ModelPressError):
    """The server answered with an error."""

    def __init__(self, body: ErrorBody) -> None:
        super().__init__(_describe(body))
        self.body = body


class Unauthorized(Rejected):
    """The key is missing, wrong, expired or revoked, or may not do this."""


class NotFound(Rejected):
    """There is no such thing in the project of this key."""


class Conflict(Rejected):
    """The request is right but not now: an upload already used, a model still inspected, a job already ended."""


class TooLarge(Rejected):
    """Over a limit of the server; the detail names it."""


class Invalid(Rejected):
    """The body is malformed; `body.problems` lists every defect."""


class Locked(Rejected):
    """Another request is writing to the upload."""


class TooMany(Rejected):
    """Too many requests, or too many waiting jobs."""


class ServerFailed(Rejected):
    """The server failed; the same request may succeed later."""


class ChecksumMismatch(ModelPressError):
    """Bytes changed on their way."""


class InspectionFailed(ModelPressError):
    """A model or dataset was refused by the worker that opened it."""

    def __init__(self, what: str, failure: Failure) -> None:
        super().__init__(f"{what} was refused: {explain(failure)}")
        self.failure = failure


class JobFailed(ModelPressError):
    """A job ended without success."""

    def __init__(self, job: Job) -> None:
        reason = f": {explain(job.failure)}" if job.failure else ""
        super().__init__(f"job {job.id} {job.state}{reason}")
        self.job = job


class WaitTimeout(ModelPressError):
    """The caller's own time limit passed."""


_BY_STATUS: dict[int, type[Rejected]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: Invalid,
    423: Locked,
    429: TooMany,
}


def rejected(body: ErrorBody) -> Rejected:
    """The exception for an error body."""
    if body.status >= 500:
        return ServerFailed(body)
    return _BY_STATUS.get(body.status, Rejected)(body)


def explain(failure: Failure) -> str:
    """A failure in one paragraph: what, where, and the way out."""
    where = ", ".join(part for part in (failure.stage, failure.layer) if part)
    text = f"{failure.message} [{failure.class_}/{failure.code}{f' at {where}' if where else ''}]"
    return f"{text} Hint: {failure.hint}" if failure.hint else text


def _describe(body: ErrorBody) -> str:
    lines = [f"{body.detail} [{body.status} {body.code}]"]
    if body.hint:
        lines.append(f"Hint: {body.hint}")
    lines += [
        f"  {p.pointer or '/'}: {p.reason}{f' ({p.hint})' if p.hint else ''}" for p in body.problems
    ]
    return "\n".join(lines)
