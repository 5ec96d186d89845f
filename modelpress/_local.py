"""`--local`: the engine on this machine, with no server. Speaks to `python -m workers.local`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from modelpress import _inputs
from modelpress._ended import Ended
from modelpress.spec.progress import Progress
from modelpress.spec.report import Report
from modelpress.spec.state import Failure, FailureClass, JobState

STOP_S = 15.0


def is_installed() -> bool:
    """Whether the engine is installed beside the client."""
    return all(importlib.util.find_spec(m) for m in ("workers", "torch", "onnx", "onnxruntime"))


def run(asked: _inputs.Asked, out: Path, *, on_progress: Callable[[Progress], None]) -> Ended:
    """Runs a recipe in a child process and leaves the artifacts and report.json in `out`."""
    others = {role: str(_inputs.file(text)) for role, text in asked.models.items()}
    order = {
        "--model": str(_inputs.file(asked.model)),
        "--models": json.dumps(others),
        "--architecture": asked.architecture,
        "--architectures": json.dumps(asked.architectures),
        "--data": asked.data and str(_inputs.file(asked.data)),
        "--sensitivity": asked.sensitivity and str(_inputs.file(asked.sensitivity)),
        "--eval-data": asked.eval_data and str(_inputs.file(asked.eval_data)),
        "--out": str(out),
        "--recipe": asked.recipe.model_dump_json(),
        "--images": asked.images.model_dump_json(),
        "--formats": json.dumps(asked.formats),
        "--constraints": json.dumps([c.model_dump(mode="json") for c in asked.constraints]),
        "--seed": str(asked.seed),
    }
    given = [part for option, value in order.items() if value for part in (option, value)]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        with _child([sys.executable, "-m", "workers.local", *given], log) as child:
            failure = _listen(child, on_progress)
        if child.returncode and failure is None:
            failure = _crash(child.returncode, log)
    return _ended(out, failure)


@contextlib.contextmanager
def _child(argv: list[str], log: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """A child in a session of its own, asked to stop when the block is left early."""
    child = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
    )
    try:
        yield child
        child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_S)
            child.kill()
            child.wait()
        if child.stdout:
            child.stdout.close()


def _listen(
    child: subprocess.Popen[str], on_progress: Callable[[Progress], None]
) -> Failure | None:
    """Reads progress until the child ends; the failure, if that is its last line."""
    assert child.stdout is not None
    for line in child.stdout:
        message = json.loads(line)
        if "class" in message:
            return Failure.model_validate(message)
        on_progress(Progress.model_validate(message))
    return None


def _crash(status: int, log: IO[str]) -> Failure:
    log.seek(0)
    tail = "\n".join(log.read().splitlines()[-20:])
    return Failure(
        **{"class": FailureClass.INTERNAL},
        code="crashed",
        message=f"the engine ended with status {status}\n{tail}"[:4000],
    )


def _ended(out: Path, failure: Failure | None) -> Ended:
    path = out / "report.json"
    report = Report.model_validate_json(path.read_bytes()) if path.exists() else None
    if failure is not None or report is None:
        return Ended(state=JobState.FAILED, failure=failure, report=report)
    files = (*(out / artifact.name for artifact in report.artifacts), path)
    return Ended(state=JobState.SUCCEEDED, report=report, files=files)
