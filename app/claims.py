"""A worker's hold on a job, what the job allows it, and what it says and hears."""

from __future__ import annotations

from dataclasses import dataclass

from app import ids
from app.tables import Artifact, Job
from modelpress.spec.job import Limits

INSPECTION_LIMITS = Limits(max_runtime_s=1800, max_memory_bytes=4 << 30)


@dataclass(frozen=True)
class Claim:
    """A worker's hold on a job, worth nothing once another worker has got a higher fence. `job` is a snapshot."""

    job: Job
    fence: int

    @property
    def seconds_left(self) -> float:
        """What the attempts before this one have left of the runtime limit."""
        return max(0.0, limits_of(self.job).max_runtime_s - self.job.running_s)


@dataclass(frozen=True)
class Beat:
    """The answer to a sign of life: whether someone asked to stop."""

    cancel: bool


@dataclass(frozen=True)
class StoredFile:
    """A file that a job made and that is in the store already, as the blob of its hash."""

    name: str
    format: str
    sha256: str
    size_bytes: int

    def row(self, job: Job) -> Artifact:
        """The artifact it is of its job."""
        return Artifact(
            id=ids.new("art"),
            project_id=job.project_id,
            job_id=job.id,
            name=self.name,
            format=self.format,
            sha256=self.sha256,
            size_bytes=self.size_bytes,
        )


def limits_of(job: Job) -> Limits:
    """The limits a job was submitted with."""
    if job.kind != "compress":
        return INSPECTION_LIMITS
    return Limits.model_validate(job.request["limits"])
