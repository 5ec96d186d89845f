"""Entry of an engine child: `python -m workers.engine compress|unpack|verify|inspect JOBDIR`.

Exits with 0 when the task is done, with EXIT_FAILED after leaving output/failure.json, with 2 on wrong arguments. Anything else is
a crash. Standard output carries progress, standard error is log.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from modelpress.spec import order
from modelpress.spec.state import Failure, FailureClass
from workers.engine import outbox
from workers.engine.errors import EngineError, OutOfMemory

TASKS = {
    "compress": ("workers.engine.pipeline", "compress"),
    "unpack": ("workers.engine.unpacking", "unpack"),
    "verify": ("workers.engine.verification", "verify_export"),
    "inspect": ("workers.engine.inspection", "inspect"),
}
"""Loaded by name, so that the verification never loads torch."""

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ALLOCATORS = ("can't allocate memory", "bad allocation", "std::bad_alloc", "out of memory")


def main(arguments: Sequence[str]) -> int:
    """Runs a task; answers the exit code."""
    if len(arguments) != 2 or arguments[0] not in TASKS:
        sys.stderr.write(f"usage: python -m workers.engine {'|'.join(TASKS)} JOBDIR\n")
        return 2
    task, jobdir = arguments[0], Path(arguments[1]).resolve()
    _keep_scratch_inside(jobdir / order.WORK)
    try:
        module, function = TASKS[task]
        getattr(importlib.import_module(module), function)(jobdir)
    except Exception as e:
        traceback.print_exc()
        outbox.write_failure(jobdir, explain(e, _stage(task, jobdir)))
        return order.EXIT_FAILED
    return order.EXIT_OK


def explain(error: Exception, stage: str) -> Failure:
    """The failure record of an exception, with what it was told on its way: the node in which it was raised."""
    where = " ".join(getattr(error, "__notes__", []))
    found = _explain(error, stage)
    if not where or where in found.message:
        return found
    return found.model_copy(update={"message": f"{found.message[:3000]} ({where[:900]})"})


def _explain(error: Exception, stage: str) -> Failure:
    if isinstance(error, EngineError):
        return error.failure(stage)
    if _is_memory(error):
        return OutOfMemory(
            "memory ran out", hint="raise limits.max_memory_bytes, or use a smaller batch_size"
        ).failure(stage)
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return Failure(
            **{"class": FailureClass.RESOURCE},
            code="disk_full",
            stage=stage,
            message=f"no space left to write: {error.strerror}",
            hint="raise limits.max_disk_bytes",
        )
    return Failure(
        **{"class": FailureClass.INTERNAL},
        code="internal",
        stage=stage,
        message=f"{type(error).__name__}: {error}"[:4000],
        hint="please report it, with the log of the attempt",
    )


def _stage(task: str, jobdir: Path) -> str:
    """Where a task stopped: behind the last stage that is in the report."""
    if task != "compress":
        return task
    try:
        report = outbox.read_report(jobdir)
    except (OSError, ValueError):
        return "baseline"
    step = len(report.stages) - 1
    return f"steps/{step}" if step < len(report.recipe.steps) else "verify"


def _is_memory(error: Exception) -> bool:
    """Also torch's and ONNX Runtime's ways to say it, known by their words: neither may be loaded here."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATORS)


def _keep_scratch_inside(work: Path) -> None:
    """Temporary files of every library go to the job's own scratch: nothing else is writable in the fence."""
    work.mkdir(parents=True, exist_ok=True)
    os.environ.update(HOME=str(work), TMPDIR=str(work))
    tempfile.tempdir = str(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
