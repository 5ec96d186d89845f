"""What a probe is."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
COLUMN = ["x86_64", "aarch64"].index(os.uname().machine)
PROBES: dict[str, Callable[[dict], object]] = {}
CERTAIN: set[str] = set()
NEEDS_ROOT: set[str] = set()


def probe(*, certain: bool = True, root: bool = False):
    def register(function):
        PROBES[function.__name__] = function
        if root:
            NEEDS_ROOT.add(function.__name__)
        if certain:
            CERTAIN.add(function.__name__)
        return function

    return register


def call(x86_64, aarch64, *arguments):
    """A system call by its number, with arguments that are integers or bytes."""
    number = (x86_64, aarch64)[COLUMN]
    wrapped = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    answer = LIBC.syscall(ctypes.c_long(number), *wrapped)
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return answer


def nothing(why):
    raise OSError(errno.ENOENT, why)
