"""Asks the kernel for what it can do for a job that is none."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from tests.workers.probes.registry import call, probe


@probe(root=True)
def makes_a_namespace(scene):
    call(272, 97, 0x0400_0000)  # CLONE_NEWUTS
    return "made"


@probe(certain=False)
def makes_a_user_namespace(scene):
    return call(272, 97, 0x1000_0000)


@probe(root=True)
def mounts(scene):
    where = str(Path(scene["jobdir"], "work")).encode()
    call(165, 40, b"none", where, b"tmpfs", 0, 0)
    return call(166, 39, where, 2)


@probe(root=True)
def changes_its_root(scene):
    return call(161, 51, b"/")


@probe(root=True)
def loads_a_program_into_the_kernel(scene):
    attributes = struct.pack("=IIII", 2, 4, 8, 1)  # an array map
    return call(321, 280, 0, attributes, len(attributes))


@probe(root=True)
def measures_the_processor(scene):
    attributes = struct.pack("=IIQ", 1, 64, 0).ljust(64, b"\0")  # the software clock
    return call(298, 241, attributes, 0, -1, -1, 0)


@probe(certain=False)
def uses_io_uring(scene):
    return call(425, 425, 1, bytes(120))


@probe()
def takes_a_memory_file(scene):
    return os.memfd_create("hidden")


@probe()
def takes_shared_memory(scene):
    found = call(29, 194, 0, 4096, 0o600 | 0o1000)
    call(31, 195, found, 0, 0)
    return found


@probe()
def takes_a_message_queue(scene):
    found = call(68, 186, 0, 0o600 | 0o1000)
    call(71, 187, found, 0, 0)
    return found


@probe()
def changes_its_personality(scene):
    return call(135, 92, 0xFFFF_FFFF) >= 0


@probe(root=True)
def reads_the_kernel_log(scene):
    return call(103, 116, 10, 0, 0)


@probe(root=True)
def names_the_machine(scene):
    name = os.uname().nodename.encode()
    return call(170, 161, name, len(name))


@probe(certain=False)
def types_into_the_terminal(scene):
    return fcntl.ioctl(0, 0x5412, b"x")


@probe()
def asks_a_file_system_by_ioctl(scene):
    with open(__file__) as file:
        return fcntl.ioctl(file, 2, bytes(4))  # FIGETBSZ: block size
