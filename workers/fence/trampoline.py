"""Confines its own process, then becomes the engine: a fence set up in the parent would confine the parent.

Started as `python -I -S -c BOOT ROOT POLICY PROGRAM ARGUMENTS...`: isolated, without site, so that nothing but this
package runs before the fence stands.
"""

from __future__ import annotations

import os
import sys

from workers.fence import landlock, process, seccomp
from workers.fence.policy import Policy, from_json

BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from workers.fence import trampoline; trampoline.main(sys.argv[2:])"

EXIT_REFUSED = 97  # the fence could not be put up; nothing was run
EXIT_ORPHANED = 98  # the worker died in the meantime

# What numerical libraries read to size their thread pools and pick their kernels.
_MACHINE = (
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
)

# What a process may know of itself; the rest of /proc/<pid> tells of the network and the mounts of the machine.
_ITSELF = ("stat", "statm", "status", "maps", "smaps_rollup", "limits", "cmdline", "comm", "fd")


def main(arguments: list[str]) -> None:
    """Never returns. `arguments`: the policy, then the command line to become."""
    try:
        confine(from_json(arguments[0]))
        os.execve(arguments[1], arguments[1:], os.environ)
    except process.Orphaned:
        os._exit(EXIT_ORPHANED)
    except OSError as e:
        sys.stderr.write(f"fence: refused, because {e}\n")
        sys.stderr.flush()
        os._exit(EXIT_REFUSED)


def confine(policy: Policy) -> None:
    """Puts the fence around this process, from the outermost limit to the innermost.

    Raises:
        OSError: some part of it can't be had.
        Orphaned: the parent is gone.
    """
    process.die_with(policy.parent)
    process.forget_signals()
    process.limit(policy.limits)
    os.umask(0o077)
    if sys.platform != "linux":
        return
    process.volunteer_for_oom()
    process.drop_capabilities()
    process.gain_nothing_from_exec()
    if policy.landlock:
        landlock.restrict(_rules(policy))
    if policy.seccomp:
        seccomp.restrict(gpu=policy.gpu)


def _rules(policy: Policy) -> list[tuple[str, landlock.Access]]:
    itself = f"/proc/{os.getpid()}"
    _pin(itself, *((f"{itself}/task",) if policy.gpu else ()), *_own(itself))
    return [
        *((path, landlock.LIST) for path in policy.listed),
        *((path, landlock.READ) for path in (*policy.read, *_MACHINE, *_own(itself))),
        *((path, landlock.EXECUTE) for path in policy.execute),
        *((path, landlock.WRITE) for path in policy.write),
        ("/dev/null", landlock.DEVICE),
        *(_gpu_rules(itself) if policy.gpu else ()),
    ]


def _own(itself: str) -> list[str]:
    return [f"{itself}/{name}" for name in _ITSELF]


def _pin(*paths: str) -> None:
    """Keeps rules on procfs true.

    A rule binds to an inode, but procfs makes new inodes once the old are reclaimed. Handles that stay open across
    exec keep them; being O_PATH they give no rights of their own.
    """
    for path in paths:
        os.set_inheritable(os.open(path, os.O_PATH), True)


def _gpu_rules(itself: str) -> list[tuple[str, landlock.Access]]:
    """NVIDIA's device nodes, and what its driver reads. Written from reports of others, tried on no device yet.

    From version 570 on cuInit also writes /proc/<pid>/task/<tid>/comm, and fails with error 304 where it can't
    (https://github.com/NVIDIA/OpenShell/issues/710).
    """
    nodes = [f"/dev/{name}" for name in os.listdir("/dev") if name.startswith("nvidia")]
    read = ("/proc/driver/nvidia", "/proc/modules", "/proc/devices", "/sys/bus/pci", "/sys/devices")
    return [
        *((path, landlock.DEVICE | landlock.LIST) for path in nodes),
        *((path, landlock.READ) for path in read),
        (f"{itself}/task", landlock.READ | landlock.Access.WRITE_FILE),
    ]
