"""What the service remembers. The same tables on Postgres and SQLite; a CHECK for every rule that SQL can hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from modelpress.spec.state import JobState, Outcome

Json = JSON().with_variant(JSONB(), "postgresql")
Serial = BigInteger().with_variant(Integer(), "sqlite")


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC. SQLite forgets the zone of what it stores; this puts it back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


def now() -> datetime:
    """The present moment, in UTC."""
    return datetime.now(UTC)


def _one_of(column: str, values: list[str]) -> str:
    return f"{column} IN ({', '.join(repr(v) for v in values)})"


class Table(DeclarativeBase):
    """Base of all tables; constraints are named so that migrations can find them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime,
        dict[str, Any]: Json,
        list[Any]: Json,
        str: String(255),
    }


class Project(Table):
    """Owns everything else. Nothing of one project is visible to another."""

    __tablename__ = "project"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    created_at: Mapped[datetime] = mapped_column(default=now)


class ApiKey(Table):
    """A key of a project; only the SHA-256 of its secret is kept."""

    __tablename__ = "api_key"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(
        ForeignKey("project.id", ondelete="CASCADE"), index=True
    )
    name: Mapped[str] = mapped_column(String(100))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    admin: Mapped[bool] = mapped_column(
        default=False
    )  # may create projects, and keys of any project
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


UPLOAD_STATES = ["in_progress", "completed", "consumed"]


class Upload(Table):
    """Bytes on their way in, by the tus protocol; becomes a blob when the last one has arrived."""

    __tablename__ = "upload"
    __table_args__ = (
        CheckConstraint(_one_of("state", UPLOAD_STATES), name="state"),
        CheckConstraint("offset_bytes BETWEEN 0 AND size_bytes", name="offset"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(
        ForeignKey("project.id", ondelete="CASCADE"), index=True
    )
    filename: Mapped[str] = mapped_column(String(255))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    offset_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    state: Mapped[str] = mapped_column(String(16), default="in_progress")
    parts: Mapped[list[Any]] = mapped_column(
        default=list
    )  # [[storage key, bytes], ...] until completed
    expected_sha256: Mapped[str | None] = mapped_column(String(64))
    sha256: Mapped[str | None] = mapped_column(String(64))
    writer: Mapped[str | None] = mapped_column(String(40))  # who may append now
    writer_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime] = mapped_column(index=True)


INSPECTION_STATES = ["inspecting", "ready", "rejected"]


class Model(Table):
    """An uploaded network; immutable."""

    __tablename__ = "model"
    __table_args__ = (CheckConstraint(_one_of("state", INSPECTION_STATES), name="state"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(
        ForeignKey("project.id", ondelete="CASCADE"), index=True
    )
    name: Mapped[str] = mapped_column(String(200))
    filename: Mapped[str] = mapped_column(String(255))
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    architecture: Mapped[str | None] = mapped_column(String(128))  # of a file that is weights alone
    state: Mapped[str] = mapped_column(String(16), default="inspecting")
    inspection: Mapped[dict[str, Any] | None]  # spec.inspection.ModelInspection
    failure: Mapped[dict[str, Any] | None]  # spec.state.Failure, when rejected
    onnx_sha256: Mapped[str | None] = mapped_column(
        String(64)
    )  # the blob that jobs use, where the upload was converted
    onnx_size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Dataset(Table):
    """Uploaded samples, with labels or without; immutable."""

    __tablename__ = "dataset"
    __table_args__ = (CheckConstraint(_one_of("state", INSPECTION_STATES), name="state"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(
        ForeignKey("project.id", ondelete="CASCADE"), index=True
    )
    name: Mapped[str] = mapped_column(String(200))
    filename: Mapped[str] = mapped_column(String(255))
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16), default="inspecting")
    inspection: Mapped[dict[str, Any] | None]  # spec.inspection.DatasetInspection
    failure: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=now)


JOB_KINDS = ["compress", "inspect_model", "inspect_dataset"]


class Job(Table):
    """One run of a recipe on a model, or the inspection of an upload. The row is the truth; a message is a nudge."""

    __tablename__ = "job"
    __table_args__ = (
        CheckConstraint(_one_of("kind", JOB_KINDS), name="kind"),
        CheckConstraint(_one_of("state", [s.value for s in JobState]), name="state"),
        CheckConstraint(
            f"outcome IS NULL OR {_one_of('outcome', [o.value for o in Outcome])}", name="outcome"
        ),
        CheckConstraint(
            "(state IN ('running', 'cancelling')) = (lease_until IS NOT NULL)", name="lease"
        ),
        CheckConstraint(
            "(state IN ('succeeded', 'failed', 'cancelled', 'expired')) = (finished_at IS NOT NULL)",
            name="finished",
        ),
        CheckConstraint("(state = 'failed') <= (failure IS NOT NULL)", name="failure"),
        UniqueConstraint("project_id", "idempotency_key"),
        Index("ix_job_project_id_created", "project_id", "kind", "id"),
        Index("ix_job_state", "state", "lease_until"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(20), default="compress")
    name: Mapped[str] = mapped_column(String(200), default="")
    queue: Mapped[str] = mapped_column(String(16), default="cpu")
    model_id: Mapped[str | None] = mapped_column(
        ForeignKey("model.id", ondelete="CASCADE"), index=True
    )
    dataset_id: Mapped[str | None] = mapped_column(
        ForeignKey("dataset.id", ondelete="CASCADE"), index=True
    )
    eval_dataset_id: Mapped[str | None] = mapped_column(
        ForeignKey("dataset.id", ondelete="CASCADE")
    )
    request: Mapped[dict[str, Any]]  # spec.job.JobRequest with the recipe resolved
    request_sha256: Mapped[str] = mapped_column(String(64))
    idempotency_key: Mapped[str | None] = mapped_column(String(255))

    state: Mapped[str] = mapped_column(String(16), default=JobState.QUEUED.value)
    outcome: Mapped[str | None] = mapped_column(String(16))
    progress: Mapped[dict[str, Any] | None]  # spec.progress.Progress, the latest
    report: Mapped[dict[str, Any] | None]  # spec.report.Report, partial until the end
    failure: Mapped[dict[str, Any] | None]  # spec.state.Failure

    attempt: Mapped[int] = mapped_column(default=0)
    oom_count: Mapped[int] = mapped_column(default=0)
    fence: Mapped[int] = mapped_column(
        BigInteger, default=0
    )  # grows with each claim; an old holder's writes are refused
    owner: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[datetime | None]
    sandbox: Mapped[str | None] = mapped_column(String(64))
    cancel_requested_at: Mapped[datetime | None]
    dispatched_at: Mapped[datetime | None]
    run_after: Mapped[datetime] = mapped_column(default=now)
    pending_until: Mapped[datetime | None]  # a job still queued then expires
    running_s: Mapped[float] = mapped_column(
        default=0.0
    )  # seconds of ended attempts, against limits.max_runtime_s

    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Attempt(Table):
    """One try of a job by one worker, numbered by the fence it got; drained ones are not counted in `job.attempt`."""

    __tablename__ = "attempt"

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    worker: Mapped[str] = mapped_column(String(200))
    sandbox: Mapped[str | None] = mapped_column(String(64))
    started_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]
    ended: Mapped[str | None] = mapped_column(
        String(32)
    )  # succeeded, failed, cancelled, expired, lost, drained
    failure: Mapped[dict[str, Any] | None]
    log_tail: Mapped[str | None] = mapped_column(Text)


class Event(Table):
    """Something that happened to a job; append-only, but that old progress goes. Its id is the SSE id."""

    __tablename__ = "event"
    __table_args__ = (
        Index("ix_event_job_id", "job_id", "id"),
        Index(
            "ix_event_progress",
            "created_at",
            postgresql_where=text("type = 'progress'"),
            sqlite_where=text("type = 'progress'"),
        ),
    )

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id", ondelete="CASCADE"))
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(String(32))  # state, progress, stage
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Artifact(Table):
    """A file a job made."""

    __tablename__ = "artifact"
    __table_args__ = (UniqueConstraint("job_id", "name"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(
        ForeignKey("project.id", ondelete="CASCADE"), index=True
    )
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(255))
    format: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Sensitivity(Table):
    """What a job measured of each layer of a model as it was uploaded; other jobs use it. Immutable."""

    __tablename__ = "sensitivity"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(
        ForeignKey("project.id", ondelete="CASCADE"), index=True
    )
    model_id: Mapped[str] = mapped_column(ForeignKey("model.id", ondelete="CASCADE"), index=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("job.id", ondelete="SET NULL"))
    model_sha256: Mapped[str] = mapped_column(String(64))  # of the ONNX file that was measured
    methods: Mapped[list[Any]]
    layers: Mapped[int]
    samples: Mapped[int]
    content: Mapped[dict[str, Any]]  # spec.sensitivity.Sensitivity
    created_at: Mapped[datetime] = mapped_column(default=now)


class Orphan(Table):
    """A stored file that no row names, and since when that is known."""

    __tablename__ = "orphan"

    project_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    found_at: Mapped[datetime] = mapped_column(default=now, index=True)
