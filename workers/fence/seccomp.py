"""Seccomp: a filter that the kernel runs on every system call of the child, from then on and for good.

It is a classic BPF program over `struct seccomp_data` (call number, architecture, six arguments). What is listed here
is answered with an error, so that libraries fall back or fail readably; everything else passes. Calls that pass
whatever their arguments are cached by the kernel (since 5.11) and cost nothing.

Only the low half of each argument is compared: the kernel itself takes all the arguments judged here as 32 bits wide.

Sources: https://docs.kernel.org/userspace-api/seccomp_filter.html, include/uapi/linux/{seccomp,audit,filter}.h,
arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h for the numbers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)

ALLOW = 0x7FFF_0000
KILL = 0x8000_0000
_ERRNO = 0x0005_0000


def refuse(code: int) -> int:
    """The filter's answer that makes the call fail with this errno."""
    return _ERRNO | code


class Machine(NamedTuple):
    """An architecture: its AUDIT_ARCH number and its column in the table of calls."""

    audit: int
    column: int


MACHINES = {"x86_64": Machine(0xC000_003E, 0), "aarch64": Machine(0xC000_00B7, 1)}

# Calls with a higher number are younger than this table and answered with ENOSYS, as an old kernel would.
LAST_KNOWN = 462  # mseal, Linux 6.10
_X32 = 0x4000_0000  # calls of the x32 ABI have this bit; they would slip past the numbers below

# name: (x86_64, aarch64); None where the architecture lacks the call.
CALLS: dict[str, tuple[int | None, int | None]] = {
    # starting processes
    "clone": (56, 220),
    "clone3": (435, 435),
    "fork": (57, None),
    "vfork": (58, None),
    # other processes
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "prlimit64": (302, 261),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "prctl": (157, 167),
    "fcntl": (72, 25),
    # sockets and other ways out
    "socket": (41, 198),
    "socketpair": (53, 199),
    "bind": (49, 200),
    "connect": (42, 203),
    "listen": (50, 201),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_setup": (206, 0),
    "ioctl": (16, 29),
    # memory that belongs to no file and no process
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # what Landlock does not see: files changed by name, watched, or reached by handle
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "truncate": (76, 45),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "inotify_add_watch": (254, 27),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # the kernel and the machine
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "personality": (135, 92),
    "vhangup": (153, 58),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
}

# Answered as if the kernel were older: libraries then take another way.
_ABSENT = ("clone3", "io_uring_setup", "io_uring_enter", "io_uring_register", "io_setup")
# Answered with EACCES, which networking code expects.
_NETWORK = ("socket", "socketpair", "bind", "connect", "listen")

_CLONE_THREAD = 0x0001_0000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SCHED_CORE = 1, 4, 62
# duplicating, flags, locks, size of a pipe, seals; not owners (who get signals), leases, or watching directories
_HARMLESS_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1033, 1034)
# close-on-exec on and off, non-blocking, bytes waiting, "is it a terminal", its size
_HARMLESS_IOCTLS = (0x5451, 0x5450, 0x5421, 0x541B, 0x5401, 0x5413)
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C


class Instruction(NamedTuple):
    """A BPF instruction: operation, how far to skip if true and if false, operand."""

    code: int
    if_true: int
    if_false: int
    operand: int


def _load(offset: int) -> Instruction:
    return Instruction(0x20, 0, 0, offset)


def _load_argument(index: int) -> Instruction:
    return _load(16 + 8 * index)  # the low half: both architectures are little-endian


def _skip_unless_equal(value: int, skip: int) -> Instruction:
    return Instruction(0x15, 0, skip, value)


def _answer(value: int) -> Instruction:
    return Instruction(0x06, 0, 0, value)


def program(machine: Machine, pid: int, *, gpu: bool) -> list[Instruction]:
    """The filter for a child with this process id.

    `gpu`: drivers talk to their devices by ioctls of their own and may share memory by descriptor; both then pass.
    """
    by_argument = judged(pid, gpu=gpu)
    body = [*_guard(machine)]
    for name, numbers in CALLS.items():
        number = numbers[machine.column]
        if number is None or (gpu and name == "memfd_create"):
            continue
        verdict = by_argument.get(name) or [_answer(_refusal(name))]
        body += [_skip_unless_equal(number, len(verdict)), *verdict]
    return [*body, _answer(ALLOW)]


def _guard(machine: Machine) -> list[Instruction]:
    """Kills at calls of another ABI, whose numbers mean something else; hides calls younger than the table."""
    greater_or_equal, jump = 0x35, 0x15
    guard = [_load(4), Instruction(jump, 1, 0, machine.audit), _answer(KILL), _load(0)]
    if machine is MACHINES["x86_64"]:
        guard += [Instruction(greater_or_equal, 0, 1, _X32), _answer(KILL)]
    return [
        *guard,
        Instruction(greater_or_equal, 0, 1, LAST_KNOWN + 1),
        _answer(refuse(errno.ENOSYS)),
    ]


def _refusal(name: str) -> int:
    if name in _ABSENT:
        return refuse(errno.ENOSYS)
    return refuse(errno.EACCES if name in _NETWORK else errno.EPERM)


def judged(pid: int, *, gpu: bool) -> dict[str, list[Instruction]]:
    """Verdicts that depend on an argument, by the name of the call."""
    only_itself = _allow_if(0, (0, pid))
    return {
        "clone": _allow_threads(),
        **dict.fromkeys(("kill", "tkill", "tgkill"), _allow_if(0, (pid,))),
        **dict.fromkeys(
            ("sched_setparam", "sched_setscheduler", "sched_setaffinity", "sched_setattr"),
            only_itself,
        ),
        "prlimit64": only_itself,
        "prctl": _refuse_if(0, (_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SCHED_CORE)),
        "fcntl": _allow_if(1, _HARMLESS_FCNTLS),
        "ioctl": _refuse_if(1, (_TIOCSTI, _TIOCLINUX))
        if gpu
        else _allow_if(1, _HARMLESS_IOCTLS, errno.ENOTTY),
    }


def _allow_threads() -> list[Instruction]:
    any_bit_set = 0x45
    return [
        _load_argument(0),
        Instruction(any_bit_set, 1, 0, _CLONE_THREAD),
        _answer(refuse(errno.EPERM)),
        _answer(ALLOW),
    ]


def _allow_if(index: int, values: Iterable[int], code: int = errno.EPERM) -> list[Instruction]:
    return _choose(index, values, then=ALLOW, otherwise=refuse(code))


def _refuse_if(index: int, values: Iterable[int]) -> list[Instruction]:
    return _choose(index, values, then=refuse(errno.EPERM), otherwise=ALLOW)


def _choose(index: int, values: Iterable[int], *, then: int, otherwise: int) -> list[Instruction]:
    wanted = list(values)
    equal = 0x15
    return [
        _load_argument(index),
        *(
            Instruction(equal, len(wanted) - position, 0, value)
            for position, value in enumerate(wanted)
        ),
        _answer(otherwise),
        _answer(then),
    ]


def available() -> bool:
    """Whether this kernel takes filters and this machine has a column in the table.

    Asks for a filter at address 0: a kernel that takes filters answers EFAULT, another EINVAL (seccomp(2)).
    """
    set_seccomp, mode_filter = 22, 2
    if os.uname().machine not in MACHINES:
        return False
    answer = _libc.prctl(set_seccomp, mode_filter, None, 0, 0)
    return bool(answer == -1 and ctypes.get_errno() == errno.EFAULT)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def restrict(*, gpu: bool) -> None:
    """Puts the filter on this process, for good. It must have one thread and have set no_new_privs.

    Raises:
        OSError: the kernel refused it.
    """
    instructions = program(MACHINES[os.uname().machine], os.getpid(), gpu=gpu)
    packed = b"".join(struct.pack("=HBBI", *i) for i in instructions)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    filter_ = _Program(len(instructions), ctypes.addressof(buffer))
    set_seccomp, mode_filter = 22, 2
    if _libc.prctl(set_seccomp, mode_filter, ctypes.byref(filter_), 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"seccomp filter: {os.strerror(code)}")
