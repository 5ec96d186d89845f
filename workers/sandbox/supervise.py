"""Starts a command inside the fence, listens to it, stops it, and tells how it ended.

The child can't fork, so killing its process group ends all of it. When this process dies instead, the kernel kills
the child: it asked for that before anything else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple, cast

from workers.fence import landlock, seccomp, trampoline
from workers.fence.policy import Policy
from workers.sandbox import surroundings, watchdog
from workers.sandbox.streams import OnLine, Streams
from workers.sandbox.watchdog import Bounds, Breach, Watchdog

Stop = Literal["cancelled", "drained", "fenced"]

EXIT_REFUSED, EXIT_ORPHANED = trampoline.EXIT_REFUSED, trampoline.EXIT_ORPHANED
TICK_S = 0.1
_ASKED_FIRST = frozenset({"cancelled", "drained"})  # SIGTERM and a grace before SIGKILL
_MAX_OPEN_FILES = 1024
_RESERVED_BYTES, _RESERVED_PER_CORE_BYTES = 1 << 30, 32 << 20  # by stacks and heaps, never used


class SandboxMissing(Exception):
    """This kernel can't confine a child, and nobody allowed to go without."""


class Kernel(NamedTuple):
    """What the kernel gives to build the fence from."""

    landlock: int  # its version; 0: none
    seccomp: bool

    @property
    def level(self) -> str:
        """'landlock-7+seccomp' where nothing is missing; 'none' where nothing is there."""
        parts = [f"landlock-{self.landlock}"] if self.landlock else []
        parts += ["seccomp"] if self.seccomp else []
        return "+".join(parts) or "none"


@dataclass(frozen=True)
class Exit:
    """How a child ended: of `stop`, `breach`, `signal` and `code` the first that is set tells why."""

    stop: Stop | None  # asked for by the caller
    breach: tuple[Breach, str] | None  # the bound it went over, and by what
    signal: int | None  # what killed it, if anything did
    code: int | None  # its exit status, if it exited
    seconds: float
    peak_memory_bytes: int
    log_tail: str
    level: str


def probe() -> Kernel:
    """Asks the kernel what it has."""
    if sys.platform != "linux":
        return Kernel(0, False)
    return Kernel(landlock.version(), seccomp.available())


def level() -> str:
    """What children are fenced with here, as reports record it.

    Raises:
        SandboxMissing: Landlock or seccomp is missing, and ALLOW_UNSANDBOXED is not set.
    """
    kernel = probe()
    if not (kernel.landlock and kernel.seccomp) and not _may_go_without():
        raise SandboxMissing(
            f"this kernel gives {kernel.level}, children need Landlock (Linux 5.13 or later, 'landlock' in the lsm= "
            "list) and seccomp on x86-64 or arm64; set ALLOW_UNSANDBOXED=1 only if you trust every uploaded file"
        )
    return kernel.level


def _may_go_without() -> bool:
    return os.environ.get("ALLOW_UNSANDBOXED", "").lower() in ("1", "true", "yes", "on")


def run(
    argv: Sequence[str],
    jobdir: Path,
    bounds: Bounds,
    *,
    on_line: OnLine = lambda _: False,
    should_stop: Callable[[], Stop | None] = lambda: None,
) -> Exit:
    """Runs a command to its end, in a job directory that has its writable folders.

    Args:
        argv: the program, absolute, and its arguments.
        jobdir: absolute; the child reads all of it and writes only to its writable folders.
        bounds: how much the child may take.
        on_line: takes each line of standard output; False sends it to the log.
        should_stop: asked about ten times a second; an answer ends the child, softly unless it is 'fenced'.

    Raises:
        SandboxMissing: see `level`.
    """
    fenced_by, started = level(), time.monotonic()
    child = _start(argv, jobdir, bounds)
    try:
        watch = Watchdog(child.pid, jobdir, bounds)
        streams = Streams(cast(IO[bytes], child.stdout), cast(IO[bytes], child.stderr), on_line)
        stop, breach = _supervise(child.pid, bounds, watch, streams, should_stop)
        streams.finish()
    finally:
        _kill(child.pid, signal.SIGKILL)
        with child:
            status = child.wait()
    return Exit(
        stop=stop,
        breach=breach,
        signal=-status if status < 0 else None,
        code=status if status >= 0 else None,
        seconds=time.monotonic() - started,
        peak_memory_bytes=watch.peak_memory_bytes,
        log_tail=streams.log_tail(),
        level=fenced_by,
    )


def _start(argv: Sequence[str], jobdir: Path, bounds: Bounds) -> subprocess.Popen[bytes]:
    policy = _policy(argv[0], jobdir, bounds).to_json()
    boot = [sys.executable, "-I", "-S", "-c", trampoline.BOOT, str(surroundings.ROOT)]
    return subprocess.Popen(
        [*boot, policy, *argv],
        cwd=jobdir,
        env=surroundings.environment(jobdir / bounds.writable[0]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _policy(program: str, jobdir: Path, bounds: Bounds) -> Policy:
    kernel = probe()
    return Policy(
        parent=os.getpid(),
        landlock=bool(kernel.landlock),
        seccomp=kernel.seccomp,
        gpu=bounds.gpu,
        listed=surroundings.listed(),
        read=(str(jobdir), *surroundings.readable(), *bounds.readable),
        execute=surroundings.executable(program),
        write=tuple(str(jobdir / name) for name in bounds.writable),
        limits=_limits(bounds),
    )


def _limits(bounds: Bounds) -> dict[str, int]:
    """What the kernel holds by itself, as a second line behind the watchdog and between its looks.

    DATA makes an allocation fail that goes far over the memory bound, which a program can report; CUDA reserves
    more than it uses, so children with a GPU go without. NPROC counts
    all threads of this user, in other containers too, so it leaves room for those of other jobs.
    """
    cores = os.cpu_count() or 1
    limits = {
        "CORE": 0,
        "CPU": int(bounds.wall_s * cores) + 60,
        "FSIZE": bounds.disk_bytes + (1 << 20),
        "MSGQUEUE": 0,
        "NOFILE": _MAX_OPEN_FILES,
        "NPROC": _threads_of_user() + 8 * bounds.threads,
    }
    if not bounds.gpu:
        reserved_bytes = _RESERVED_BYTES + cores * _RESERVED_PER_CORE_BYTES
        limits["DATA"] = bounds.memory_bytes + reserved_bytes
        limits["MEMLOCK"] = 1 << 16
    return limits


def _threads_of_user() -> int:
    count, uid = 0, os.getuid()
    for entry in os.scandir("/proc") if os.path.isdir("/proc/self") else ():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == uid:
                count += len(os.listdir(f"{entry.path}/task"))
    return count


def _supervise(
    pid: int,
    bounds: Bounds,
    watch: Watchdog,
    streams: Streams,
    should_stop: Callable[[], Stop | None],
) -> tuple[Stop | None, tuple[Breach, str] | None]:
    """Returns once the child has ended, by itself or because it was stopped; it is not reaped yet."""
    stop: Stop | None = None
    breach: watchdog.Found | None = None
    next_look = kill_at = 0.0
    with _wake_on_end(pid, streams):
        while not _ended(pid):
            streams.pump(TICK_S)
            now = time.monotonic()
            if stop or breach:
                if now >= kill_at:
                    _kill(pid, signal.SIGKILL)
            elif now >= next_look or streams.flooded:
                next_look = now + TICK_S
                breach = _flood(streams) or watch.look()
                stop = None if breach else should_stop()
                if stop in _ASKED_FIRST:
                    _kill(pid, signal.SIGTERM)
                    kill_at = now + bounds.grace_s
                elif stop or breach:
                    _kill(pid, signal.SIGKILL)
    return stop, breach


def _flood(streams: Streams) -> watchdog.Found | None:
    if not streams.flooded:
        return None
    return watchdog.Found("output", f"printed {streams.total_bytes >> 20} MiB in no time")


@contextlib.contextmanager
def _wake_on_end(pid: int, streams: Streams) -> Iterator[None]:
    """Where the kernel has descriptors of processes, the end of the child is noticed at once."""
    if not hasattr(os, "pidfd_open"):
        yield
        return
    handle = os.pidfd_open(pid)
    try:
        streams.wake_on(handle)
        yield
    finally:
        streams.forget(handle)
        os.close(handle)


def _ended(pid: int) -> bool:
    """Without reaping it, so that its number can't come to mean another process before the group is killed."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
