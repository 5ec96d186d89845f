"""Watching a job from a terminal, and what Ctrl-C then means."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import typer

from modelpress import _download, _show, errors
from modelpress._ended import Ended, Exit
from modelpress.client import Client
from modelpress.resources import Job
from modelpress.spec.report import Report
from modelpress.spec.state import JobState


def to_the_end(client: Client, job: Job) -> Job:
    """Shows a job until it has ended. Ctrl-C asks whether to cancel it, where there is someone to ask.

    Raises:
        typer.Exit: interrupted.
    """
    try:
        with _show.job(job.name or job.id) as tell:
            return client.wait(job, on_progress=tell, check=False)
    except KeyboardInterrupt:
        if _wants_to_cancel():
            client.cancel(job)
            job = client.wait(job, check=False)
            _show.say(f"job {job.id} {job.state}")
        else:
            _show.say(f"job {job.id} goes on; see it again with: modelpress watch {job.id}")
        raise typer.Exit(Exit.INTERRUPTED) from None


def collect(client: Client, job: Job, out: Path | None) -> Ended:
    """What a job that has ended leaves; its files too, where `out` says where to."""
    files: tuple[Path, ...] = ()
    report = _report_of(client, job)
    if out is not None and job.state is JobState.SUCCEEDED:
        files = fetch(client, job, out)
    return Ended(job=job.id, state=job.state, failure=job.failure, report=report, files=files)


def fetch(client: Client, job: Job, out: Path) -> tuple[Path, ...]:
    """Downloads the artifacts of a job and its report."""
    paths = []
    for artifact in client.artifacts(job):
        with _show.transfer(f"download {artifact.name}") as told:
            paths.append(client.download(artifact, out, on_progress=told))
    report = client.report(job).model_dump_json(by_alias=True, indent=2)
    return (*paths, _download.write(out / "report.json", report.encode() + b"\n"))


def fetch_model(client: Client, model: str, out: Path, *, onnx: bool) -> tuple[Path, ...]:
    """Downloads the file of a model, or the ONNX file that jobs use."""
    with _show.transfer(f"download {model}") as told:
        format_: Literal["uploaded", "onnx"] = "onnx" if onnx else "uploaded"
        return (client.download_model(model, out, format=format_, on_progress=told),)


def _report_of(client: Client, job: Job) -> Report | None:
    try:
        return client.report(job)
    except errors.NotFound:
        return None


def _wants_to_cancel() -> bool:
    if not (sys.stdin.isatty() and _show.err.is_terminal):
        return False
    try:
        return typer.confirm("Cancel the job?", default=False, err=True)
    except typer.Abort:
        return False
