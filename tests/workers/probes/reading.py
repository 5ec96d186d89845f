"""Reads what is not the child's to read."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path

from tests.workers.probes.registry import LIBC, call, probe


@probe()
def reads_passwd(scene):
    return Path("/etc/passwd").read_text()[:20]


@probe()
def reads_a_secret_of_the_worker(scene):
    return Path(scene["secret"]).read_text()


@probe()
def reads_another_job(scene):
    return (Path(scene["other"]) / "input" / "model.onnx").read_text()


@probe()
def lists_the_folder_of_all_jobs(scene):
    return os.listdir(Path(scene["other"]).parent)


@probe()
def lists_the_root(scene):
    return os.listdir("/")


@probe()
def reads_through_a_magic_link(scene):
    return Path(f"/proc/self/root{scene['secret']}").read_text()


@probe()
def reads_through_dots(scene):
    return Path(scene["jobdir"], "work", "..", "..", "secret.env").read_text()


@probe()
def reopens_a_path_handle(scene):
    handle = os.open(scene["secret"], os.O_PATH)
    return Path(f"/proc/self/fd/{handle}").read_text()


@probe()
def reads_after_chdir(scene):
    os.chdir("/")
    return Path("etc/passwd").read_text()[:20]


@probe()
def reads_the_environment_of_the_worker(scene):
    return Path(f"/proc/{scene['worker']}/environ").read_bytes()[:20]


@probe()
def reads_the_command_line_of_the_worker(scene):
    return Path(f"/proc/{scene['worker']}/cmdline").read_bytes()[:20]


@probe()
def lists_processes(scene):
    return os.listdir("/proc")


@probe()
def lists_devices(scene):
    return os.listdir("/dev")


@probe()
def lists_network_interfaces(scene):
    return os.listdir("/sys/class/net")


@probe()
def reads_the_mounts_of_the_machine(scene):
    return Path("/proc/self/mountinfo").read_text()[:20]


@probe()
def reads_the_connections_of_the_machine(scene):
    return Path("/proc/self/net/tcp").read_text()[:20]


@probe()
def reads_the_connections_through_a_thread(scene):
    return Path("/proc/thread-self/net/tcp").read_text()[:20]


@probe()
def opens_a_file_by_handle(scene):
    handle = struct.pack("=Ii128s", 128, 0, b"")
    mount = ctypes.c_int()
    buffer = ctypes.create_string_buffer(handle)
    path = scene["secret"].encode()
    call(303, 264, -100, path, buffer, ctypes.byref(mount), 0)
    return "got a handle"


@probe()
def watches_another_job(scene):
    watcher = LIBC.inotify_init()
    watched = LIBC.inotify_add_watch(watcher, scene["other"].encode(), 0xFFF)
    if watched < 0:
        raise OSError(ctypes.get_errno(), "inotify_add_watch")
    return watched


@probe()
def watches_a_folder_the_old_way(scene):
    handle = os.open(Path(scene["jobdir"], "input"), os.O_RDONLY)
    fcntl.fcntl(handle, fcntl.F_NOTIFY, fcntl.DN_CREATE)
    os.close(handle)
    return "watching"


@probe()
def delays_those_who_open_a_file(scene):
    handle = os.open(Path(scene["jobdir"], "input", "model.onnx"), os.O_RDONLY)
    fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    os.close(handle)
    return "leased"
