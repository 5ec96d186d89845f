"""What a child takes: memory, threads, disk, time. Limits that no single kernel setting can hold."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from workers import jobdir as jobdirs

Breach = Literal["wall", "memory", "threads", "disk", "files", "reserve", "output"]

GIB = 1 << 30
_RESERVE_SHARE = 0.02
_PATIENCE = 20  # a look that takes long is repeated after 20 times as long


@dataclass(frozen=True)
class Bounds:
    """How much a child may take before it is killed.

    `writable` are the folders of the job directory that it may write to; the first is its home.
    `memory_bytes` counts what only this child keeps in memory or swap: not the file pages that it maps, which the
    kernel drops when it needs room. `disk_bytes` and `files` count what lies in those folders.
    """

    wall_s: float
    writable: tuple[str, ...] = ("work", "output")
    memory_bytes: int = 8 * GIB
    disk_bytes: int = 32 * GIB
    files: int = 10_000
    threads: int = 512
    reserve_bytes: int = 1 * GIB  # of the disk, for the rest of the machine; never over 2 % of it
    grace_s: float = 5.0  # between SIGTERM and SIGKILL
    gpu: bool = False
    readable: tuple[str, ...] = ()  # more paths that the child may read


class Found(NamedTuple):
    """A bound that the child is over, and by what."""

    breach: Breach
    detail: str


class Watchdog:
    """Looks at one child. `pid` must stay unreaped while it is looked at."""

    def __init__(self, pid: int, jobdir: Path, bounds: Bounds) -> None:
        self._pid, self._jobdir, self._bounds = pid, jobdir, bounds
        self._started = time.monotonic()
        self._next_disk_look = 0.0
        self.peak_memory_bytes = 0

    def look(self) -> Found | None:
        """The first bound that does not hold now."""
        return self._look_at_time() or self._look_at_process() or self._look_at_disk()

    def _look_at_time(self) -> Found | None:
        seconds = time.monotonic() - self._started
        if seconds <= self._bounds.wall_s:
            return None
        return Found("wall", f"ran for {seconds:.0f} s, the limit is {self._bounds.wall_s:.0f} s")

    def _look_at_process(self) -> Found | None:
        memory_bytes, threads = taken(self._pid)
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory_bytes)
        if memory_bytes > self._bounds.memory_bytes:
            return Found("memory", _over("held", memory_bytes, self._bounds.memory_bytes))
        if threads > self._bounds.threads:
            return Found("threads", f"{threads} threads, the limit is {self._bounds.threads}")
        return None

    def _look_at_disk(self) -> Found | None:
        started = time.monotonic()
        if started < self._next_disk_look:
            return None
        found = self._measure_disk()
        ended = time.monotonic()
        self._next_disk_look = ended + _PATIENCE * (ended - started)
        return found

    def _measure_disk(self) -> Found | None:
        bounds = self._bounds
        try:
            size_bytes, files = self._usage()
        except jobdirs.HostileOutput as e:
            return Found("files", f"left a {e}")
        if size_bytes > bounds.disk_bytes:
            return Found("disk", _over("wrote", size_bytes, bounds.disk_bytes))
        if files > bounds.files:
            return Found("files", f"made {files} files, the limit is {bounds.files}")
        free, reserve = room(self._jobdir, bounds)
        if free < reserve:
            return Found("reserve", f"the disk has {free >> 20} MiB left, {reserve >> 20} are kept")
        return None

    def _usage(self) -> jobdirs.Usage:
        size_bytes = files = 0
        for name in self._bounds.writable:
            usage = jobdirs.measure(self._jobdir / name)
            size_bytes, files = size_bytes + usage.size_bytes, files + usage.files
        return jobdirs.Usage(size_bytes + _deleted_bytes(self._pid), files)


def room(directory: Path, bounds: Bounds) -> tuple[int, int]:
    """Free bytes of the disk, and how many of them must stay free."""
    disk = os.statvfs(directory)
    share = int(disk.f_blocks * disk.f_frsize * _RESERVE_SHARE)
    return disk.f_bavail * disk.f_frsize, min(bounds.reserve_bytes, share)


def taken(pid: int) -> tuple[int, int]:
    """Bytes that a process alone keeps in memory or swap, and its threads; zeros once it has ended."""
    fields = ("RssAnon", "RssShmem", "VmSwap")
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    numbers = dict(re.findall(r"^(\w+):\s+(\d+)", status, re.MULTILINE))
    memory_bytes = sum(int(numbers.get(name, 0)) for name in fields) << 10
    return memory_bytes, int(numbers.get("Threads", 0))


def _deleted_bytes(pid: int) -> int:
    """What a process holds in files that it deleted but keeps open: on the disk, yet in no directory."""
    files: dict[tuple[int, int], int] = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                status = entry.stat()
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 0:
                    files[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(files.values())


def _over(verb: str, seen_bytes: int, limit_bytes: int) -> str:
    return f"{verb} {seen_bytes >> 20} MiB, the limit is {limit_bytes >> 20} MiB"
