"""Jobs: submit, judge, list, watch, cancel; their reports and attempts."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Header, Path, Query, Response
from pydantic import BaseModel, Field

from app import catalogue, claims, errors, jobs, submissions
from app.api.deps import Db, Me
from app.tables import Attempt, Job
from modelpress.spec.constraint import Constraint
from modelpress.spec.job import Data, Format, JobRequest, Limits
from modelpress.spec.progress import Progress
from modelpress.spec.recipe import Recipe
from modelpress.spec.report import Report
from modelpress.spec.state import Failure, JobState, Outcome

router = APIRouter(tags=["jobs"])

Kind = Literal["compress", "inspect_model", "inspect_dataset"]
JobId = Annotated[str, Path(max_length=64, description="Id of the job.")]
IdempotencyKey = Annotated[
    str,
    Header(
        max_length=255,
        description="Any text of your choice. The same key with the same body answers the job it made before, "
        "with status 200; with another body it is refused.",
    ),
]


class JobLinks(BaseModel):
    """Where the rest is."""

    self_: str = Field(alias="self", description="This job.")
    events: str = Field(description="What happened, as pages or as a stream.")
    report: str = Field(description="What was measured so far.")
    artifacts: str = Field(description="The files it made.")
    attempts: str = Field(description="Its tries.")
    cancel: str = Field(description="POST here to stop it.")


class JobBody(BaseModel):
    """A job as it is now."""

    id: str = Field(description="Id of the job.")
    name: str = Field(description="A name for people.")
    kind: Kind = Field(description="'compress', or the inspection of an uploaded file.")
    state: JobState = Field(description="Where the job is.")
    outcome: Outcome | None = Field(
        description="What a succeeded job achieved; null before, and for inspections."
    )
    model: str | None = Field(description="Id of the model; null for the inspection of a dataset.")
    models: dict[str, str] = Field(description="Ids of the other models, by role.")
    data: Data | None = Field(description="The datasets; null for inspections.")
    sensitivity: str | None = Field(description="Id of the sensitivities its steps use, if any.")
    recipe: Recipe | None = Field(description="The recipe, names resolved; null for inspections.")
    formats: tuple[Format, ...] = Field(description="What the result is written as.")
    constraints: tuple[Constraint, ...] = Field(description="What the result must satisfy.")
    limits: Limits = Field(description="When the job gives up.")
    seed: int = Field(description="Seed of every random choice.")
    queue: str = Field(description="The queue it waits in, or was taken from.")
    progress: Progress | None = Field(description="How far a running job is; null while it waits.")
    failure: Failure | None = Field(description="Why it failed or expired; null otherwise.")
    attempt: int = Field(
        description="How many tries were begun; one a worker gave back counts not."
    )
    sandbox: str | None = Field(
        description="Fence around the latest try, such as 'landlock-7+seccomp'; null before the first."
    )
    created_at: datetime = Field(description="When it was submitted.")
    started_at: datetime | None = Field(description="When its first try began.")
    finished_at: datetime | None = Field(description="When it ended.")
    cancel_requested_at: datetime | None = Field(description="When someone asked to stop it.")
    links: JobLinks = Field(description="Where the rest is.")

    @classmethod
    def of(cls, job: Job) -> Self:
        """The answer for a row."""
        asked = JobRequest.model_validate(job.request) if job.kind == "compress" else None
        return cls(
            id=job.id,
            name=job.name,
            kind=job.kind,
            state=JobState(job.state),
            outcome=Outcome(job.outcome) if job.outcome else None,
            model=job.model_id,
            models=asked.models if asked else {},
            data=asked.data if asked else None,
            sensitivity=asked.sensitivity if asked else None,
            recipe=asked.recipe if asked else None,
            formats=asked.formats if asked else (),
            constraints=asked.constraints if asked else (),
            limits=claims.limits_of(job),
            seed=asked.seed if asked else 0,
            queue=job.queue,
            progress=Progress.model_validate(job.progress) if job.progress else None,
            failure=Failure.model_validate(job.failure) if job.failure else None,
            attempt=job.attempt,
            sandbox=job.sandbox,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            cancel_requested_at=job.cancel_requested_at,
            links=_links(job.id),
        )


class JobPage(BaseModel):
    """Part of a list of jobs."""

    items: list[JobBody] = Field(description="The jobs, newest first.")
    next_cursor: str | None = Field(
        description="Pass as `cursor` to get the next part; null at the end."
    )


class PlannedStage(BaseModel):
    """A stage that the job would run."""

    name: str = Field(description="'baseline', the kind of the step, or 'verify'.")
    step: int | None = Field(description="Index of the step; null for the other two.")
    paper: str = Field(description="Where the method comes from; empty for the other two.")


class PlanBody(BaseModel):
    """What a job would do."""

    recipe: Recipe = Field(description="The recipe, names resolved and defaults filled in.")
    stages: list[PlannedStage] = Field(description="The stages, in order.")
    warnings: list[str] = Field(description="What will be missing from the report, and why.")


class AttemptBody(BaseModel):
    """One try of a job by one worker."""

    number: int = Field(description="1 for the first; a try that was given back has a number too.")
    worker: str = Field(description="The worker that took it.")
    sandbox: str | None = Field(description="Fence around it, such as 'landlock-7+seccomp'.")
    started_at: datetime = Field(description="When the worker took the job.")
    finished_at: datetime | None = Field(description="When it ended; null while it runs.")
    ended: str | None = Field(
        description="'succeeded', 'failed', 'cancelled', 'expired', 'lost' (the worker fell silent) or "
        "'drained' (the worker was shut down and gave it back); null while it runs."
    )
    failure: Failure | None = Field(description="Why it failed; null otherwise.")
    log_tail: str | None = Field(
        description="The end of what the try wrote, where it did not succeed."
    )

    @classmethod
    def of(cls, attempt: Attempt) -> Self:
        """The answer for a row."""
        return cls(
            number=attempt.number,
            worker=attempt.worker,
            sandbox=attempt.sandbox,
            started_at=attempt.started_at,
            finished_at=attempt.finished_at,
            ended=attempt.ended,
            failure=Failure.model_validate(attempt.failure) if attempt.failure else None,
            log_tail=attempt.log_tail,
        )


class AttemptPage(BaseModel):
    """All tries of a job."""

    items: list[AttemptBody] = Field(description="The tries, in order.")
    next_cursor: str | None = Field(default=None, description="Always null: the list is whole.")


@router.post(
    "/jobs",
    status_code=202,
    responses={200: {"model": JobBody, "description": "The job this key made before."}},
)
def submit_job(
    request: JobRequest,
    me: Me,
    session: Db,
    response: Response,
    idempotency_key: IdempotencyKey = "",
) -> JobBody:
    """Queues a job. Its Location answers how it is doing."""
    job, created = submissions.submit(session, me, request, idempotency_key=idempotency_key)
    response.status_code = 202 if created else 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return JobBody.of(job)


@router.post("/jobs:validate")
def validate_job(request: JobRequest, me: Me, session: Db) -> PlanBody:
    """Judges a request as POST /v1/jobs does, and says what the job would do, without making it."""
    inputs = submissions.check(session, me, request)
    steps = [
        PlannedStage(name=step.kind, step=index, paper=step.paper)
        for index, step in enumerate(request.recipe.steps)
    ]
    first, last = (PlannedStage(name=name, step=None, paper="") for name in ("baseline", "verify"))
    return PlanBody(
        recipe=request.recipe,
        stages=[first, *steps, last],
        warnings=submissions.warnings(inputs),
    )


@router.get("/jobs")
def list_jobs(
    me: Me,
    session: Db,
    cursor: Annotated[
        str, Query(max_length=64, description="`next_cursor` of the page before.")
    ] = "",
    limit: Annotated[int, Query(ge=1, le=200, description="Most jobs in the answer.")] = 50,
    kind: Annotated[Kind, Query(description="Only jobs of this kind.")] = "compress",
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    model: Annotated[str, Query(max_length=64, description="Only jobs of this model.")] = "",
) -> JobPage:
    """The project's jobs, newest first."""
    found = catalogue.jobs(
        session,
        me.project_id,
        cursor=cursor,
        limit=limit + 1,
        kind=kind,
        state=state,
        model=model,
    )
    shown = found[:limit]
    return JobPage(
        items=[JobBody.of(job) for job in shown],
        next_cursor=shown[-1].id if len(found) > limit else None,
    )


@router.get("/jobs/{job_id}")
def get_job(job_id: JobId, me: Me, session: Db) -> JobBody:
    """A job as it is now."""
    return JobBody.of(jobs.get(session, me, job_id))


@router.post("/jobs/{job_id}:cancel", status_code=202)
def cancel_job(job_id: JobId, me: Me, session: Db) -> JobBody:
    """Stops a job: at once where it waits; a running one is 'cancelling' until its worker has stopped it."""
    return JobBody.of(jobs.cancel(session, me, job_id))


@router.get("/jobs/{job_id}/report")
def get_report(job_id: JobId, me: Me, session: Db) -> Report:
    """What a job has measured so far; `complete` once it has succeeded."""
    job = jobs.get(session, me, job_id)
    if job.report is None:
        raise errors.NotFound(
            f"job {job_id!r} has no report: the uploaded model has not been measured",
            code="no_report",
            hint="it appears when the first stage, the baseline, is done",
        )
    return Report.model_validate(job.report)


@router.get("/jobs/{job_id}/attempts")
def list_attempts(job_id: JobId, me: Me, session: Db) -> AttemptPage:
    """Every try of a job, with the end of the log of those that failed."""
    job = jobs.get(session, me, job_id)
    return AttemptPage(items=[AttemptBody.of(row) for row in jobs.attempts(session, job)])


def _links(job_id: str) -> JobLinks:
    here = f"/v1/jobs/{job_id}"
    return JobLinks(
        self=here,
        events=f"{here}/events",
        report=f"{here}/report",
        artifacts=f"{here}/artifacts",
        attempts=f"{here}/attempts",
        cancel=f"{here}:cancel",
    )
