"""Executes other programs. Each attack ends its process, so it gets one of its own; status 7 means that it got through."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from tests.workers.probes.registry import LIBC


def become_the_shell(scene):
    os.execv("/bin/sh", ["sh", "-c", "exit 7"])


def become_what_it_wrote(scene):
    path = Path(scene["jobdir"], "work", "program")
    with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o700), "wb") as file:
        file.write(Path(sys.executable).resolve().read_bytes())
    become_python(path)


def become_a_memory_file(scene):
    handle = os.memfd_create("program", 0)
    os.write(handle, Path(sys.executable).resolve().read_bytes())
    become_python(f"/proc/self/fd/{handle}")


def become_python(path):
    environment = {**os.environ, "PYTHONHOME": sys.base_prefix}
    os.execve(path, ["python", "-I", "-S", "-c", "raise SystemExit(7)"], environment)


def use_calls_of_another_abi(scene):
    """The x32 ABI has its own numbers for the same calls; a filter that forgets it is no filter."""
    LIBC.syscall(ctypes.c_long(0x4000_0000 + 39))  # getpid
    sys.exit(7)


ALONE = {
    function.__name__: function
    for function in (
        become_the_shell,
        become_what_it_wrote,
        become_a_memory_file,
        use_calls_of_another_abi,
    )
}
