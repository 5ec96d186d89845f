"""What `modelpress sensitivity` finds and prints: a table of this machine or of the server, or those of a model or a job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer
from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.text import Text

from modelpress import _chart, _curves, resources
from modelpress.client import Client
from modelpress.spec import curves
from modelpress.spec.problem import from_validation
from modelpress.spec.sensitivity import Sensitivity

ID = "sns_"
JOB_ID = "job_"
MAX_BYTES = 64 << 20


def read(path: Path) -> Sensitivity:
    """A table in a file, as jobs leave it.

    Raises:
        typer.BadParameter: it is none.
    """
    if path.stat().st_size > MAX_BYTES:
        raise typer.BadParameter(f"{path} has {path.stat().st_size:,} bytes, at most {MAX_BYTES:,}")
    try:
        return Sensitivity.model_validate_json(path.read_bytes())
    except ValidationError as e:
        first = from_validation(e)[0]
        raise typer.BadParameter(
            f"{path} is no table of sensitivities: {first.pointer or '/'}: {first.reason}"
        ) from e


def of_job(client: Client, job_id: str) -> list[resources.Sensitivity]:
    """Those that a job measured, in the order in which it did."""
    job = client.job(job_id)
    known = client.sensitivities(job.model) if job.model else iter(())
    return [found for found in known if found.job == job.id][::-1]


def render(found: Sensitivity) -> RenderableType:
    """A table for each method, for a console."""
    return Group(*_parts(found))


def svg(found: Sensitivity) -> str:
    """The same as a picture of curves."""
    return _chart.svg(curves.of_sensitivity(found), _title(found))


def _title(found: Sensitivity) -> str:
    return f"one layer alone compressed, {found.samples:,} training samples"


def _parts(found: Sensitivity) -> Iterator[RenderableType]:
    accuracy = "" if found.accuracy is None else f", accuracy as it is {found.accuracy:.2%}"
    after = f", after {', '.join(found.after)}" if found.after else ""
    yield Text(
        f"{_title(found)}{accuracy}{after}\nmodel {found.model_sha256}, {len(found.layers)} layers",
        style="dim",
    )
    yield from _curves.tables(curves.of_sensitivity(found))
