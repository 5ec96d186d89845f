"""The life of a job: its states, the moves between them, how it ended and why it failed."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, computed_field


class JobState(StrEnum):
    """Where a job is. A recipe is validated before its job exists, so there is no 'validating'."""

    QUEUED = "queued"  # waits for a worker
    RUNNING = "running"  # a worker holds its lease
    CANCELLING = "cancelling"  # asked to stop; the worker is ending the child
    SUCCEEDED = "succeeded"  # artifacts exist and were verified
    FAILED = "failed"  # see failure
    CANCELLED = "cancelled"  # stopped on request
    EXPIRED = "expired"  # ran out of its pending or runtime limit


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.EXPIRED}),
    JobState.RUNNING: frozenset(
        {
            JobState.SUCCEEDED,
            JobState.FAILED,
            JobState.CANCELLING,
            JobState.EXPIRED,
            JobState.QUEUED,
        }
    ),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED}),
    **{state: frozenset() for state in TERMINAL},
}


class Outcome(StrEnum):
    """What a succeeded job achieved."""

    MET = "met"  # every constraint holds (or none was set) and the result is smaller or faster
    BEST_EFFORT = "best_effort"  # some constraint does not hold; the artifact is kept all the same
    NOT_IMPROVED = "not_improved"  # neither the file nor the latency got smaller


class FailureClass(StrEnum):
    """Whose fault, and what may help."""

    USER_INPUT = "user_input"  # the model, data or recipe is wrong: change it
    UNSUPPORTED = "unsupported"  # correct, but ModelPress can't do it: see hint
    RESOURCE = "resource"  # memory, disk or file limits: raise them or make the job smaller
    DEADLINE = "deadline"  # ran out of time: raise limits.max_runtime_s
    TRANSIENT = "transient"  # the machine or a service failed: retried by itself
    INTERNAL = "internal"  # a defect of ModelPress: please report it


BLAME: dict[FailureClass, str] = {
    FailureClass.USER_INPUT: "user",
    FailureClass.UNSUPPORTED: "service",
    FailureClass.RESOURCE: "user",
    FailureClass.DEADLINE: "user",
    FailureClass.TRANSIENT: "service",
    FailureClass.INTERNAL: "service",
}

RETRYABLE = frozenset({FailureClass.RESOURCE, FailureClass.TRANSIENT})


class Failure(BaseModel):
    """Why a job, or the inspection of a file, failed."""

    model_config = ConfigDict(frozen=True)

    class_: FailureClass = Field(alias="class", description="Whose fault it is, and what may help.")
    code: str = Field(
        max_length=64, description="Stable name, such as 'bad_model' or 'memory_limit'."
    )
    stage: str = Field(
        default="",
        max_length=128,
        description="The stage that failed: 'baseline', 'steps/1', 'verify'.",
    )
    layer: str = Field(
        default="", max_length=512, description="The layer or array concerned, where there is one."
    )
    message: str = Field(
        max_length=4000, description="What was wrong, the value seen and the limit."
    )
    hint: str = Field(default="", max_length=2000, description="The way out.")

    @computed_field(description="Whose fault it is: 'user' or 'service'.")  # type: ignore[prop-decorator]
    @property
    def blame(self) -> str:
        """'user' or 'service'."""
        return BLAME[self.class_]

    @computed_field(description="Whether the same job may succeed when it is run again.")  # type: ignore[prop-decorator]
    @property
    def retryable(self) -> bool:
        """Whether the same job may succeed when it is run again."""
        return self.class_ in RETRYABLE
