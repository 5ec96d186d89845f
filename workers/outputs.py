"""Reads what an engine child left, as the work of an enemy: every field checked before anyone stores or shows it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from modelpress.spec import order
from modelpress.spec.inspection import DatasetInspection, ModelInspection
from modelpress.spec.report import Report
from modelpress.spec.sensitivity import Sensitivity
from modelpress.spec.state import Failure
from workers import jobdir as jobdirs
from workers.jobdir import HostileOutput

MAX_REPORT_BYTES = 16 << 20
MAX_INSPECTION_BYTES = 16 << 20
MAX_SENSITIVITY_BYTES = 16 << 20
MAX_FAILURE_BYTES = 64 << 10
MAX_ARTIFACTS = 16
_ARTIFACT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

Inspection = ModelInspection | DatasetInspection
_Model = TypeVar("_Model", bound=BaseModel)


class Artifact(NamedTuple):
    """A file that the job made, as measured here."""

    name: str
    path: Path
    size_bytes: int
    sha256: str


def report(jobdir: Path, asked: order.CompressOrder) -> Report:
    """Reads the report, which may be partial.

    Raises:
        HostileOutput: it is missing, no report, or not about this order.
    """
    found = _load(jobdir, order.REPORT, Report, MAX_REPORT_BYTES)
    expected = ["baseline", *(step.kind for step in asked.recipe.steps)]
    names = [stage.name for stage in found.stages]
    steps = [stage.step for stage in found.stages]
    _require(found.recipe == asked.recipe, "the report is about another recipe")
    _require(found.seed == asked.seed, f"the report's seed is {found.seed}, not {asked.seed}")
    _require(names == expected[: len(names)], f"the report's stages are {names}")
    _require(steps == [None, *range(len(steps) - 1)][: len(steps)], f"its steps are {steps}")
    return found


def finished_report(jobdir: Path, asked: order.CompressOrder) -> Report:
    """Reads the report of a child that says it succeeded.

    Raises:
        HostileOutput: as `report`, or something of the job is missing.
    """
    found = report(jobdir, asked)
    stages = len(asked.recipe.steps) + 1
    verified = found.verification is not None and found.verification.ok
    judged = [result.constraint for result in found.constraints]
    _require(len(found.stages) == stages, f"{len(found.stages)} stages of {stages}")
    _require(found.complete and found.outcome is not None, "the report is not complete")
    _require(verified, "the artifact was not verified")
    _require(judged == list(asked.constraints), "the report judges other constraints")
    _require(0 < len(found.artifacts) <= MAX_ARTIFACTS, f"{len(found.artifacts)} artifacts")
    made = {info.format for info in found.artifacts}
    _require(made >= set(asked.formats), f"the formats are {sorted(made)}")
    return found


def artifacts(jobdir: Path, claimed: Report, *, max_bytes: int) -> tuple[Artifact, ...]:
    """Measures each artifact of a report anew.

    Raises:
        HostileOutput: a file is not what the report says, or its name could mean another place.
    """
    names = [info.name for info in claimed.artifacts]
    _require(len(set(names)) == len(names), f"artifacts named twice in {names}")
    found = []
    for info in claimed.artifacts:
        _require(_ARTIFACT_NAME.fullmatch(info.name) is not None, f"artifact name {info.name!r}")
        relative = f"{order.ARTIFACTS}/{info.name}"
        size_bytes, sha256 = jobdirs.digest(jobdir, relative, max_bytes=max_bytes)
        _require(size_bytes == info.size_bytes, f"{relative} has {size_bytes} bytes")
        _require(sha256 == info.sha256, f"{relative} has the SHA-256 {sha256}")
        found.append(Artifact(info.name, jobdir / relative, size_bytes, sha256))
    return tuple(found)


def sensitivities(
    jobdir: Path, asked: order.CompressOrder, claimed: Report
) -> tuple[Sensitivity, ...]:
    """What was measured of the model as it was uploaded; tables of what steps made of it stay artifacts.

    Raises:
        HostileOutput: a table is missing, no table, or not about this model.
    """
    found: list[Sensitivity] = []
    after: list[str] = []
    for step in asked.recipe.steps:
        if step.analyzes:
            name = order.sensitivity_name(len(found) + 1)
            found.append(_table(jobdir, name, asked, claimed, tuple(after)))
        elif step.changes_model:
            after.append(step.kind)
    return tuple(table for table in found if not table.after)


def _table(
    jobdir: Path, name: str, asked: order.CompressOrder, claimed: Report, after: tuple[str, ...]
) -> Sensitivity:
    _require(name in {info.name for info in claimed.artifacts}, f"there is no artifact {name}")
    relative = f"{order.ARTIFACTS}/{name}"
    found = _load(jobdir, relative, Sensitivity, MAX_SENSITIVITY_BYTES)
    known = {layer.name for layer in found.layers}
    _require(found.model_sha256 == asked.model.sha256, f"{relative} is about another model")
    _require(found.after == after, f"{relative} was measured after {list(found.after)[:8]}")
    _require({row.layer for row in found.rows} <= known, f"{relative} has rows of no layer")
    return found


def failure(jobdir: Path) -> Failure:
    """Reads why a child failed, in its own words.

    Raises:
        HostileOutput: it did not say, or not in the right form.
    """
    return _load(jobdir, order.FAILURE, Failure, MAX_FAILURE_BYTES)


def converted(jobdir: Path, found: Inspection, *, max_bytes: int) -> tuple[Artifact, ...]:
    """Measures the ONNX file that an upload in another format became; nothing where it was ONNX, or is a dataset.

    Raises:
        HostileOutput: it is missing, or no plain file.
    """
    if not isinstance(found, ModelInspection) or found.format == "onnx":
        return ()
    size_bytes, sha256 = jobdirs.digest(jobdir, order.CONVERTED, max_bytes=max_bytes)
    return (Artifact("model.onnx", jobdir / order.CONVERTED, size_bytes, sha256),)


def inspection(jobdir: Path, asked: order.InspectOrder) -> Inspection:
    """Reads what a child found in a file.

    Raises:
        HostileOutput: it is missing or no inspection of that kind of file.
    """
    if asked.kind == "model":
        return _load(jobdir, order.INSPECTION, ModelInspection, MAX_INSPECTION_BYTES)
    return _load(jobdir, order.INSPECTION, DatasetInspection, MAX_INSPECTION_BYTES)


def _load(jobdir: Path, relative: str, model: type[_Model], max_bytes: int) -> _Model:
    content = jobdirs.read(jobdir, relative, max_bytes=max_bytes)
    try:
        found = model.model_validate_json(content)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = "/".join(str(part) for part in first["loc"])
        raise HostileOutput(f"{relative} is malformed at {where[:200]!r}: {first['msg']}") from e
    if not _storable(found.model_dump()):
        raise HostileOutput(f"{relative} holds a NUL character or a number that is not finite")
    return found


def _storable(value: object) -> bool:
    """Whether JSON columns and strict JSON readers take it."""
    check: Callable[[object], bool] = _storable
    if isinstance(value, dict):
        return all(check(k) and check(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(check, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return not (isinstance(value, str) and "\0" in value)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise HostileOutput(otherwise)
