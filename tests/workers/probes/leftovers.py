"""What a careless worker leaves behind for its children."""

from __future__ import annotations

import contextlib
import fcntl
import os

from tests.workers.probes.registry import nothing, probe


@probe()
def uses_a_descriptor_of_the_worker(scene):
    os.lseek(scene["leaked"], 0, os.SEEK_SET)
    return os.read(scene["leaked"], 100)


@probe()
def finds_open_descriptors(scene):
    """Its streams aside, and handles that give no rights (O_PATH)."""
    handles = [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]
    found = []
    for handle in handles:
        with contextlib.suppress(OSError):
            if not fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_PATH:
                found.append(os.readlink(f"/proc/self/fd/{handle}"))
    return found or nothing("no descriptor to use")


@probe()
def finds_a_secret_in_its_environment(scene):
    return os.environ["MODELPRESS_S3_SECRET_ACCESS_KEY"]


@probe(certain=False)
def reads_standard_input(scene):
    return os.read(0, 1) or nothing("end of file")


@probe(certain=False)
def opens_the_terminal(scene):
    return os.open("/dev/tty", os.O_RDWR)
