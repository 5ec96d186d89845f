"""Starts processes, and turns on others: always a victim that was started for it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import struct
import subprocess
from pathlib import Path

from tests.workers.probes.registry import LIBC, call, probe


@probe()
def forks(scene):
    if (pid := os.fork()) == 0:
        os._exit(0)
    return os.waitpid(pid, 0)


@probe()
def forks_by_raw_clone(scene):
    if (pid := call(56, 220, signal.SIGCHLD, 0, 0, 0, 0)) == 0:
        os._exit(0)
    return os.waitpid(pid, 0)


@probe()
def forks_by_clone3(scene):
    arguments = struct.pack("=8Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    if (pid := call(435, 435, arguments, len(arguments))) == 0:
        os._exit(0)
    return os.waitpid(pid, 0)


@probe()
def spawns(scene):
    pid = os.posix_spawn("/bin/true", ["true"], {})
    return os.waitpid(pid, 0)


@probe()
def starts_a_subprocess(scene):
    return subprocess.run(["/bin/true"], check=True).returncode


@probe()
def signals_another_process(scene):
    os.kill(scene["victim"], signal.SIGCONT)
    return "signalled"


@probe()
def may_signal_everything(scene):
    """Signal 0 asks for permission and does nothing. No probe may ever do harm where the fence is broken."""
    os.kill(-1, 0)
    return "may"


@probe()
def signals_a_thread_of_another(scene):
    return call(234, 131, scene["victim"], scene["victim"], signal.SIGCONT)


@probe()
def queues_a_signal(scene):
    information = struct.pack("=iii116x", signal.SIGCONT, 0, -1)
    return call(129, 138, scene["victim"], signal.SIGCONT, information)


@probe()
def signals_by_descriptor(scene):
    handle = os.pidfd_open(scene["victim"])
    signal.pidfd_send_signal(handle, signal.SIGCONT)
    return "signalled"


@probe()
def has_the_kernel_signal_another(scene):
    """A pipe whose owner is another process signals that one when data arrive, with any signal (fcntl(2))."""
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETOWN, scene["victim"])
    fcntl.fcntl(reader, 10, signal.SIGCONT)
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
    return os.write(writer, b"x")


@probe()
def traces_another_process(scene):
    seize, detach = 0x4206, 17
    call(101, 117, seize, scene["victim"], 0, 0)
    call(101, 117, 0x4207, scene["victim"], 0, 0)
    os.waitpid(scene["victim"], 0)
    return call(101, 117, detach, scene["victim"], 0, 0)


@probe()
def reads_memory_of_another(scene):
    buffer = ctypes.create_string_buffer(8)
    here = struct.pack("=QQ", ctypes.addressof(buffer), 8)
    there = struct.pack("=QQ", scene["address"], 8)
    return call(310, 270, scene["victim"], here, 1, there, 1, 0)


@probe()
def limits_another_process(scene):
    soft, hard = resource.prlimit(scene["victim"], resource.RLIMIT_CORE)
    resource.prlimit(scene["victim"], resource.RLIMIT_CORE, (0, hard))
    return soft


@probe()
def pins_another_process(scene):
    os.sched_setaffinity(scene["victim"], os.sched_getaffinity(scene["victim"]))
    return "pinned"


@probe()
def slows_another_process(scene):
    os.setpriority(os.PRIO_PROCESS, scene["victim"], 5)
    return "slowed"


@probe()
def idles_another_process(scene):
    os.sched_setscheduler(scene["victim"], os.SCHED_BATCH, os.sched_param(0))
    return "idled"


@probe()
def outlives_its_worker(scene):
    if LIBC.prctl(1, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    return "detached"


@probe()
def hides_from_its_worker(scene):
    if LIBC.prctl(4, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    LIBC.prctl(4, 1, 0, 0, 0)
    return "hidden"


@probe()
def spares_itself_from_the_oom_killer(scene):
    Path("/proc/self/oom_score_adj").write_text("900")
    return "written"


@probe(certain=False)
def raises_its_limits(scene):
    _, hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (hard, hard + 1))
    return "raised"


@probe(root=True)
def becomes_another_user(scene):
    os.setresuid(1, 1, 0)
    os.setresuid(0, 0, 0)
    return "became"
