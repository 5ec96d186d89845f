"""The artifact, loaded by ONNX Runtime in a fresh process that knows nothing of torch, against what the engine computed.

python -m workers.engine verify JOBDIR
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from modelpress.spec import order
from modelpress.spec.quantize import QuantizeFloat16
from modelpress.spec.recipe import Recipe
from modelpress.spec.report import ArtifactInfo, Verification
from workers.engine import outbox, probes, unpacking, verdict
from workers.engine.errors import ExportMismatch
from workers.engine.measure import session
from workers.engine.probes import Arrays, Probe

PT2 = "workers.engine.pt2_verification"
"""Loaded by name where it is asked for: it loads torch."""

_NOT_FINITE = "is not finite"

_FORMATS: Mapping[str, Literal["onnx", "pt2", "npz", "mpk", "json"]] = {
    ".json": "json",
    ".mpk": "mpk",
    ".npz": "npz",
    ".pt2": "pt2",
}


def verify_export(jobdir: Path) -> None:
    """Compares the artifact with the probes that `compress` left, judges the constraints and completes the report.

    Raises:
        ExportMismatch: ONNX Runtime refuses the artifact, or computes something else.
    """
    asked = outbox.read_compress_order(jobdir)
    stages = len(asked.recipe.steps) + 2
    teller = outbox.Teller(stages)
    teller.start(stages - 1, "verify", "loading the artifact in a fresh process")
    verification = check(jobdir, asked.threads)
    if (found := unpacking.read(jobdir)) is not None:
        seen = {"unpacked_sha256": found.sha256, "unpack_seconds": found.seconds}
        verification = verification.model_copy(update=seen)
    if verification.ok and "pt2" in asked.formats:
        verification = importlib.import_module(PT2).check(jobdir, asked.threads, verification)
    report = outbox.read_report(jobdir).model_copy(update={"verification": verification})
    outbox.write_report(jobdir, report)
    if not verification.ok:
        raise ExportMismatch(
            verification.message,
            hint=_hint(verification.message, asked.recipe),
        )
    judged = verdict.judge(report, asked.constraints)
    complete = {"artifacts": tuple(_artifacts(jobdir)), "complete": True}
    outbox.write_report(jobdir, judged.model_copy(update=complete))
    teller.done(f"verified on {verification.samples} samples")


def _hint(message: str, recipe: Recipe) -> str:
    """The way out of an artifact that computes something else."""
    halves = any(isinstance(s, QuantizeFloat16) and s.compute == "float16" for s in recipe.steps)
    if halves and _NOT_FINITE in message:
        return (
            "outputs of a layer beyond 65,504 are infinite in float16: leave compute out of quantize.float16, "
            "or exclude the layers with large outputs"
        )
    return "please report it with the model; if reduce_range was set to false, try without"


def check(jobdir: Path, threads: int) -> Verification:
    """Runs every probe through the artifact.

    Raises:
        ExportMismatch: ONNX Runtime refuses the artifact.
    """
    kept = probes.read(jobdir)
    artifact = jobdir / order.ARTIFACTS / order.ONNX
    opened = session.open(artifact, threads=threads, raising=ExportMismatch)
    largest, problems = 0.0, []
    for run in kept.runs:
        outputs = dict(zip(opened.outputs, opened.run(run.inputs), strict=True))
        difference, problem = compare(outputs, run)
        largest = max(largest, difference)
        problems.append(problem)
    if not any(problems) and largest > kept.tolerance:
        problems.append(
            f"outputs differ by {largest:.3g} from the engine's, {kept.tolerance:.3g} is allowed"
        )
    message = "; ".join(dict.fromkeys(filter(None, problems)))
    return Verification(
        ok=not message,
        samples=sum(_samples(run) for run in kept.runs),
        max_abs_difference=largest,
        tolerance=kept.tolerance,
        message=message[:2000],
    )


def compare(outputs: Arrays, run: Probe) -> tuple[float, str]:
    """Largest absolute difference of all outputs, and what can't be compared at all."""
    if set(outputs) != set(run.outputs):
        return 0.0, f"the outputs are {sorted(outputs)}, not {sorted(run.outputs)}"
    largest = 0.0
    for name, wanted in run.outputs.items():
        found = outputs[name]
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            return largest, (
                f"output {name!r} is {found.dtype} {list(found.shape)}, "
                f"not {wanted.dtype} {list(wanted.shape)}"
            )
        difference = _difference(found, wanted)
        if not np.isfinite(difference):
            return largest, f"output {name!r} {_NOT_FINITE} where the engine's is"
        largest = max(largest, difference)
    return largest, ""


def _difference(found: NDArray[np.generic], wanted: NDArray[np.generic]) -> float:
    if wanted.dtype.kind != "f":
        return 0.0  # class numbers jump where scores tie; the scores are compared
    equal = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    with np.errstate(invalid="ignore"):
        gap = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    gap = np.where(np.isnan(gap), np.inf, gap)
    return float(np.where(equal, 0.0, gap).max(initial=0.0))


def _samples(run: Probe) -> int:
    return max((len(array) for array in run.inputs.values() if array.ndim), default=1)


def _artifacts(jobdir: Path) -> Iterator[ArtifactInfo]:
    for path in sorted((jobdir / order.ARTIFACTS).iterdir()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield ArtifactInfo(
            name=path.name,
            format=_FORMATS.get(path.suffix, "onnx"),
            size_bytes=path.stat().st_size,
            sha256=digest,
        )
