"""Landlock: a process gives up rights on files, for itself and for whatever it executes later.

A ruleset names the rights it handles. After `restrict`, a handled right holds only beneath the paths that a rule
grants it to; nothing can give it back. TCP ports, abstract sockets and signals to outsiders are given up whole.
Rules bind to inodes when they are made, so moving or remounting things later opens nothing.

Not covered by any version: stat, readlink, chmod, chown, utime, extended attributes, inotify, the ioctls of regular
files. `seccomp` refuses those that change or watch something; that a path exists can still be found out.

Sources: https://docs.kernel.org/userspace-api/landlock.html and include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from enum import IntFlag

_libc = ctypes.CDLL(None, use_errno=True)

# The same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_QUESTION = 1
_PATH_BENEATH = 1

_NET_RIGHTS = 0b11  # bind and connect TCP, since version 4
_SCOPES = 0b11  # abstract unix sockets and signals, since version 6


class Access(IntFlag):
    """Rights on files, as the kernel numbers them."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


LIST = Access.READ_DIR
READ = Access.READ_FILE | Access.READ_DIR
EXECUTE = Access.READ_FILE | Access.EXECUTE
# No EXECUTE; of all things that can be made only files and directories: no link, socket, FIFO or device.
WRITE = (
    READ
    | Access.WRITE_FILE
    | Access.TRUNCATE
    | Access.MAKE_REG
    | Access.MAKE_DIR
    | Access.REMOVE_FILE
    | Access.REMOVE_DIR
    | Access.REFER
)
DEVICE = Access.READ_FILE | Access.WRITE_FILE | Access.IOCTL_DEV

_OF_FILES = (
    Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
)
_SINCE = {Access.REFER: 2, Access.TRUNCATE: 3, Access.IOCTL_DEV: 5}  # version; the others: 1


def version() -> int:
    """The kernel's version of Landlock, 1 (Linux 5.13) or more; 0 where there is none or it is switched off."""
    answer: int = _libc.syscall(
        _CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_QUESTION)
    )
    return max(answer, 0)


def restrict(rules: Iterable[tuple[str, Access]]) -> None:
    """Leaves this process, for good, only the rights that the rules grant beneath their paths.

    Paths that do not exist are passed over. The process must have set no_new_privs.

    Raises:
        OSError: the kernel refused a step.
    """
    handled = _handled(version())
    ruleset = _create(handled)
    try:
        for path, access in rules:
            _add(ruleset, path, access & handled)
        _call("landlock_restrict_self", _RESTRICT_SELF, ruleset, ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _handled(version: int) -> Access:
    return Access(sum(right for right in Access if _SINCE.get(right, 1) <= version))


def _create(handled: Access) -> int:
    """Makes a ruleset with all the kernel offers.

    Some enterprise kernels report version 6 without its scopes and answer EINVAL; those get a ruleset without them.
    """
    offered = version()
    fields = [int(handled)]
    fields += [_NET_RIGHTS] if offered >= 4 else []
    fields += [_SCOPES] if offered >= 6 else []
    try:
        return _create_with(fields)
    except OSError as e:
        if e.errno != errno.EINVAL or len(fields) < 3:
            raise
        return _create_with(fields[:2])


def _create_with(fields: list[int]) -> int:
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    size = ctypes.c_size_t(len(attributes))
    return _call("landlock_create_ruleset", _CREATE_RULESET, attributes, size, ctypes.c_uint32(0))


def _add(ruleset: int, path: str, access: Access) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            access &= _OF_FILES
        attributes = struct.pack("=Qi", access, handle)
        kind = ctypes.c_int(_PATH_BENEATH)
        _call(f"landlock_add_rule {path}", _ADD_RULE, ruleset, kind, attributes, ctypes.c_uint32(0))
    finally:
        os.close(handle)


def _call(what: str, number: int, *arguments: object) -> int:
    answer: int = _libc.syscall(number, *arguments)
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return answer
