"""Why a child ended without success, as a failure that tells a person what to do."""

from __future__ import annotations

import signal
from pathlib import Path

from modelpress.spec import order
from modelpress.spec.job import Limits
from modelpress.spec.state import Failure, FailureClass
from workers import outputs, sandbox
from workers.jobdir import HostileOutput

MIB = 1 << 20


def failure(ended: sandbox.Exit, limits: Limits, jobdir: Path, stage: str) -> Failure | None:
    """None for a child that exited with 0: whether it succeeded is for its outputs to show."""
    if ended.breach is not None:
        return _breach(ended.breach, limits, stage)
    if ended.signal is not None:
        return _killed(ended, limits, stage)
    if ended.code == order.EXIT_OK:
        return None
    if ended.code == order.EXIT_FAILED:
        return _own_words(jobdir, stage)
    return _status(ended, stage)


def bad_output(problem: HostileOutput, stage: str) -> Failure:
    """The child says that it succeeded, its files say otherwise."""
    return _failure(
        FailureClass.INTERNAL,
        "bad_output",
        stage,
        f"the engine ended well, but what it left can't be used: {problem}",
        "please report it, with the log of the attempt",
    )


def _breach(breach: tuple[sandbox.Breach, str], limits: Limits, stage: str) -> Failure:
    kind, detail = breach
    match kind:
        case "wall":
            return _runtime_limit("did not end within its limit", limits, stage)
        case "memory":
            return _memory_limit(detail, limits, stage)
        case "disk":
            hint = f"raise limits.max_disk_bytes, now {limits.max_disk_bytes:,}"
            return _failure(FailureClass.RESOURCE, "disk_limit", stage, f"the job {detail}", hint)
        case "reserve":
            hint = "the job is run again by itself while it has attempts left; free disk space on the worker"
            return _failure(FailureClass.TRANSIENT, "disk_full", stage, detail, hint)
        case "files" | "threads" | "output":
            hint = (
                "no honest job comes near this limit: please report it, with the log of the attempt"
            )
            message = f"the job {detail}"
            return _failure(FailureClass.RESOURCE, f"{kind}_limit", stage, message, hint)


def _runtime_limit(detail: str, limits: Limits, stage: str) -> Failure:
    return _failure(
        FailureClass.DEADLINE,
        "runtime_limit",
        stage,
        f"the job {detail}",
        f"raise limits.max_runtime_s, now {limits.max_runtime_s:,}, or ask for fewer epochs, rounds or samples",
    )


def _memory_limit(detail: str, limits: Limits, stage: str) -> Failure:
    return _failure(
        FailureClass.RESOURCE,
        "memory_limit",
        stage,
        f"the job {detail}",
        f"raise limits.max_memory_bytes, now {limits.max_memory_bytes:,}, or use a smaller batch",
    )


def _killed(ended: sandbox.Exit, limits: Limits, stage: str) -> Failure:
    name = signal.strsignal(ended.signal or 0) or f"signal {ended.signal}"
    if ended.signal == signal.SIGXCPU:
        return _runtime_limit("used up the processor time that goes with its limit", limits, stage)
    if ended.signal == signal.SIGABRT and "std::bad_alloc" in ended.log_tail:
        held = f"held {ended.peak_memory_bytes // MIB} MiB and could not get more"
        return _memory_limit(held, limits, stage)
    if ended.signal in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return _failure(
            FailureClass.TRANSIENT,
            "killed",
            stage,
            f"something outside ModelPress ended the engine ({name}) when it held {ended.peak_memory_bytes // MIB} MiB",
            "if the machine ran out of memory, run fewer jobs at once or lower limits.max_memory_bytes",
        )
    return _failure(
        FailureClass.INTERNAL,
        "crashed",
        stage,
        f"the engine crashed: {name}",
        "please report it, with the log of the attempt",
    )


def _own_words(jobdir: Path, stage: str) -> Failure:
    try:
        found = outputs.failure(jobdir)
    except HostileOutput as e:
        return _failure(
            FailureClass.INTERNAL,
            "bad_output",
            stage,
            f"the engine failed without saying why: {e}",
            "please report it, with the log of the attempt",
        )
    return found if found.stage else found.model_copy(update={"stage": stage})


def _status(ended: sandbox.Exit, stage: str) -> Failure:
    if ended.code == sandbox.EXIT_REFUSED:
        return _failure(
            FailureClass.INTERNAL,
            "sandbox_refused",
            stage,
            f"the fence could not be put up, so nothing was run: {ended.log_tail.strip()[-500:]}",
            "check the worker's kernel and container settings; see docs/security.md",
        )
    if ended.code == sandbox.EXIT_ORPHANED:
        return _failure(
            FailureClass.TRANSIENT,
            "killed",
            stage,
            "the engine lost its worker before it began",
            "",
        )
    return _failure(
        FailureClass.INTERNAL,
        "crashed",
        stage,
        f"the engine exited with status {ended.code}: {_last_line(ended.log_tail)}",
        "please report it, with the log of the attempt",
    )


def _last_line(log: str) -> str:
    return (log.strip().splitlines() or ["it left no log"])[-1][:500]


def _failure(class_: FailureClass, code: str, stage: str, message: str, hint: str) -> Failure:
    return Failure(**{"class": class_}, code=code, stage=stage, message=message, hint=hint)
