"""Limits of a process that are neither files nor system calls."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CAPABILITY_VERSION_3 = 0x2008_0522
_CAP_DAC_READ_SEARCH = 2
_OOM_SCORE = 900  # of 1000


class Orphaned(Exception):
    """The parent died before the child could tie its life to it."""


def die_with(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends, however it ends (prctl(2)).

    Raises:
        Orphaned: `parent` is gone already.
    """
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise Orphaned


def forget_signals() -> None:
    """Undoes what a worker set for itself and children inherit: blocked signals, ignored SIGTERM and SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def limit(limits: dict[str, int]) -> None:
    """Sets resource limits, soft and hard; one that is lower already stays."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is None:
            continue
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def volunteer_for_oom() -> None:
    """Has a machine short of memory kill this process rather than the worker.

    Only ever raises the score: containers may start at 1000, and lowering it is a privilege.
    """
    with open("/proc/self/oom_score_adj") as file:
        score = int(file.read())
    if score < _OOM_SCORE:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(_OOM_SCORE))


def drop_capabilities() -> None:
    """Takes root's powers from a child of root, even after it executes something: no_new_privs is set too.

    What stays, where the worker had it, is reading files whoever owns them; Landlock decides which.
    See capabilities(7).

    Raises:
        OSError: the kernel refused it.
    """
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    _check("capget", _libc.capget(header, data))
    effective, permitted, _, _, _, _ = struct.unpack("=6I", data.raw)
    kept = 1 << _CAP_DAC_READ_SEARCH
    reduced = struct.pack("=6I", effective & kept, permitted & kept, 0, 0, 0, 0)
    _check("capset", _libc.capset(header, reduced))


def gain_nothing_from_exec() -> None:
    """Sets no_new_privs: set-uid bits and file capabilities mean nothing to this process and those after it.

    Raises:
        OSError: the kernel refused it.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    _check("prctl", _libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero))


def _check(what: str, answer: int) -> None:
    if answer:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
