"""Every setting of the service, from environment variables that start with MODELPRESS_."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

GIB = 1 << 30
DAY_S = 86_400.0


class Settings(BaseSettings):
    """The defaults are the embedded service: SQLite, a local directory and a broker that needs no server."""

    model_config = SettingsConfigDict(env_prefix="MODELPRESS_", extra="ignore", frozen=True)

    home: Path = Field(
        default=Path.home() / ".modelpress",
        description="Directory of the embedded database, files, broker and key.",
    )
    database_url: str = Field(
        default="",
        description="postgresql+psycopg://... or sqlite:///...; empty: SQLite below home.",
    )
    broker_url: str = Field(
        default="", description="redis://...; empty: files below home, with atomic publish."
    )
    storage_url: str = Field(
        default="", description="s3://bucket or file:///path; empty: a directory below home."
    )
    s3_endpoint: str = Field(default="", description="URL of an S3-compatible server; empty: AWS.")
    s3_region: str = Field(default="us-east-1", description="Region of the bucket.")
    s3_access_key_id: str = Field(
        default="", description="Access key of the bucket; empty: found in the environment."
    )
    s3_secret_access_key: str = Field(default="", description="Secret key of the bucket.")

    max_upload_bytes: int = Field(
        default=32 * GIB, description="Largest file that may be uploaded."
    )
    max_body_bytes: int = Field(default=1 << 20, description="Largest JSON body.")
    upload_expires_s: int = Field(
        default=86_400, description="An unfinished upload is removed this long after its last byte."
    )
    download_redirect: bool = Field(
        default=False, description="Answer downloads with a redirect to a presigned S3 URL."
    )

    orphans_after_s: float = Field(
        default=7 * DAY_S,
        ge=0,
        description="A stored file that nothing names is removed this long after that was noticed; 0 keeps all.",
    )
    orphans_scan_s: float = Field(
        default=DAY_S,
        gt=0,
        description="How often a sweeper compares the store with the database, to notice such files.",
    )
    progress_kept_s: float = Field(
        default=30 * DAY_S,
        ge=0,
        description="Progress events are removed after this long; what a job reached and measured stays. 0 keeps all.",
    )

    lease_s: float = Field(
        default=60, description="A job whose worker is silent this long is given to another."
    )
    heartbeat_s: float = Field(default=15, description="How often a worker renews its lease.")
    max_attempts: int = Field(default=3, description="Attempts of a job before it fails as lost.")
    sweep_s: float = Field(default=5, description="How often lost and stale jobs are looked for.")
    resend_s: float = Field(
        default=30, description="A queued job is sent to the broker again after this long."
    )
    sweep_in_api: bool = Field(
        default=True, description="Sweep in the API process too; safe with any number of sweepers."
    )
    queued_per_project: int = Field(
        default=1000, description="Most jobs a project may have waiting."
    )

    worker_queues: Literal["all", "cpu", "gpu", "ingest"] = Field(
        default="all",
        description="Queues this worker takes: 'ingest' inspects uploads, 'cpu' and 'gpu' run recipes.",
    )
    job_queue: Literal["cpu", "gpu"] = Field(
        default="cpu", description="Queue new jobs are sent to."
    )
    work_dir: Path | None = Field(
        default=None, description="Where workers keep job directories; null: below home."
    )
    allow_unsandboxed: bool = Field(
        default=False,
        validation_alias="ALLOW_UNSANDBOXED",
        description="Run children without the fence where the kernel lacks it. Only for files you trust.",
    )
    drain_s: float = Field(
        default=60,
        description="On SIGTERM a worker gives a running child this long, then re-queues its job.",
    )

    host: str = Field(default="127.0.0.1", description="Address the API listens on.")
    port: int = Field(default=8765, description="Port the API listens on.")
    log_json: bool = Field(default=False, description="Log JSON lines instead of text.")

    @property
    def resolved_database_url(self) -> str:
        """The database, the embedded one by default."""
        return self.database_url or f"sqlite:///{self.home / 'modelpress.db'}"

    @property
    def resolved_storage_url(self) -> str:
        """The store, the embedded one by default."""
        return self.storage_url or (self.home / "files").as_uri()

    @property
    def resolved_work_dir(self) -> Path:
        """Where job directories are made."""
        return self.work_dir or self.home / "work"

    @property
    def key_file(self) -> Path:
        """Where the embedded service leaves its API key for the CLI on the same machine; mode 0600."""
        return self.home / "key.json"


@cache
def get() -> Settings:
    """The settings of this process, read once."""
    return Settings()
