"""Attacks on the fence. Run as `python probes.py SCENE` inside it, and outside as the negative control.

Each probe returns what it achieved, or raises. None does damage, for one day the fence will be broken: attacks on
processes go to a victim started for them, attacks on the kernel ask for what changes nothing. Those marked `certain`
get through wherever there is no fence, or the test would show nothing; those marked `root`, as root.
Only the standard library: a plain user's interpreter may have nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

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


# what a careless parent leaves behind


@probe()
def uses_a_descriptor_of_the_worker(scene):
    os.lseek(scene["leaked"], 0, os.SEEK_SET)
    return os.read(scene["leaked"], 100)


@probe()
def finds_open_descriptors(scene):
    """Its streams aside, and handles that give no rights (O_PATH)."""
    import fcntl

    handles = [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]
    found = []
    for handle in handles:
        with contextlib.suppress(OSError):
            if not fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_PATH:
                found.append(os.readlink(f"/proc/self/fd/{handle}"))
    return found or _nothing("no descriptor to use")


@probe()
def finds_a_secret_in_its_environment(scene):
    return os.environ["MODELPRESS_S3_SECRET_ACCESS_KEY"]


@probe(certain=False)
def reads_standard_input(scene):
    return os.read(0, 1) or _nothing("end of file")


@probe(certain=False)
def opens_the_terminal(scene):
    return os.open("/dev/tty", os.O_RDWR)


def _nothing(why):
    raise OSError(errno.ENOENT, why)


# reading files


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


# writing files


@probe()
def writes_to_its_input(scene):
    Path(scene["jobdir"], "input", "model.onnx").write_text("changed")
    return "changed"


@probe()
def adds_to_its_input(scene):
    Path(scene["jobdir"], "input", "new").write_text("new")
    return "added"


@probe()
def deletes_its_input(scene):
    victim = Path(scene["jobdir"], "input", "spare")
    victim.unlink()
    victim.write_text("spare")
    return "deleted"


@probe()
def renames_its_input(scene):
    here, there = Path(scene["jobdir"], "input", "spare"), Path(scene["jobdir"], "work", "spare")
    there.write_text("mine")
    os.replace(there, here)
    return "replaced"


@probe()
def takes_its_input_away(scene):
    here, there = Path(scene["jobdir"], "input", "spare"), Path(scene["jobdir"], "work", "spare")
    os.rename(here, there)
    os.rename(there, here)
    return "taken"


@probe()
def writes_to_its_order(scene):
    Path(scene["jobdir"], "order.json").write_text("{}")
    return "changed"


@probe()
def plants_a_module_in_the_job_directory(scene):
    Path(scene["jobdir"], "json.py").write_text("")
    return "planted"


@probe()
def writes_to_another_job(scene):
    Path(scene["other"], "output.txt").write_text("mine")
    return "written"


@probe()
def writes_to_the_temporary_folder(scene):
    path = Path(f"/tmp/probe-{os.getpid()}")
    path.write_text("x")
    path.unlink()
    return "written"


@probe()
def writes_to_shared_memory(scene):
    path = Path(f"/dev/shm/probe-{os.getpid()}")
    path.write_text("x")
    path.unlink()
    return "written"


@probe()
def truncates_a_secret(scene):
    os.truncate(scene["spoil"], 0)
    return "emptied"


@probe()
def locks_a_secret_away(scene):
    os.chmod(scene["spoil"], 0)
    os.chmod(scene["spoil"], 0o600)
    return "locked"


@probe()
def opens_its_input_to_all(scene):
    handle = os.open(Path(scene["jobdir"], "input", "model.onnx"), os.O_RDONLY)
    os.fchmod(handle, 0o666)
    return "opened"


@probe()
def changes_times_of_a_secret(scene):
    os.utime(scene["spoil"], (1, 1))
    return "aged"


@probe()
def hides_bytes_in_attributes(scene):
    path = Path(scene["jobdir"], "work", "attributes")
    path.write_text("x")
    os.setxattr(path, "user.hidden", b"x" * 1000)
    return "hidden"


@probe()
def links_a_secret(scene):
    os.link(scene["secret"], Path(scene["jobdir"], "work", "hard"))
    return "linked"


@probe()
def links_its_input(scene):
    os.link(
        Path(scene["jobdir"], "input", "model.onnx"), Path(scene["jobdir"], "output", "hard.onnx")
    )
    return "linked"


@probe()
def leaves_a_symlink(scene):
    os.symlink(scene["secret"], Path(scene["jobdir"], "output", "report.json"))
    return "linked"


@probe()
def leaves_a_fifo(scene):
    os.mkfifo(Path(scene["jobdir"], "output", "fifo"))
    return "left"


@probe(root=True)
def makes_a_device(scene):
    os.mknod(Path(scene["jobdir"], "work", "mem"), 0o600 | 0x2000, os.makedev(1, 1))
    return "made"


@probe(root=True)
def gives_a_file_away(scene):
    path = Path(scene["jobdir"], "work", "given")
    path.write_text("x")
    os.chown(path, 65534, 65534)
    return "given"


# Executing files. Each ends its process, so it gets one of its own; exit status 7 means that it got through.


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


# network


@probe()
def connects_by_tcp(scene):
    with socket.create_connection(("127.0.0.1", scene["port"]), timeout=2):
        return "connected"


@probe()
def listens_by_tcp(scene):
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()


@probe()
def connects_by_tcp6(scene):
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM):
        return "made"


@probe()
def sends_by_udp(scene):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return s.sendto(b"secret", ("127.0.0.1", scene["port"]))


@probe()
def connects_by_unix_socket(scene):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(scene["unix"])
        return "connected"


@probe()
def connects_by_abstract_socket(scene):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(f"\0{scene['abstract']}")
        return "connected"


@probe()
def asks_netlink(scene):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
        s.bind((0, 0))
        return "bound"


@probe(root=True)
def sends_raw_packets(scene):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 255):
        return "made"


@probe()
def makes_a_socket_pair(scene):
    for end in socket.socketpair():
        end.close()
    return "made"


@probe()
def resolves_a_name(scene):
    return socket.getaddrinfo("localhost", 80, proto=socket.IPPROTO_TCP)[0][4]


# processes


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
    import fcntl

    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETOWN, scene["victim"])
    fcntl.fcntl(reader, 10, signal.SIGCONT)
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
    return os.write(writer, b"x")


@probe()
def watches_a_folder_the_old_way(scene):
    import fcntl

    handle = os.open(Path(scene["jobdir"], "input"), os.O_RDONLY)
    fcntl.fcntl(handle, fcntl.F_NOTIFY, fcntl.DN_CREATE)
    return "watching"


@probe()
def delays_those_who_open_a_file(scene):
    import fcntl

    handle = os.open(Path(scene["jobdir"], "input", "model.onnx"), os.O_RDONLY)
    fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    return "leased"


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


# the kernel


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
    import fcntl

    return fcntl.ioctl(0, 0x5412, b"x")


@probe()
def asks_a_file_system_by_ioctl(scene):
    import fcntl

    with open(__file__) as file:
        return fcntl.ioctl(file, 2, bytes(4))  # FIGETBSZ: block size


# what must work all the same


def ordinary_work(scene):
    """Threads, mapped files, renames between its folders: raises if the fence is in the way."""
    work, output = Path(scene["jobdir"], "work"), Path(scene["jobdir"], "output")
    assert Path(scene["jobdir"], "input", "model.onnx").read_text()
    results = []
    threads = [threading.Thread(target=results.append, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(8))
    (work / "a" / "b").mkdir(parents=True)
    (work / "a" / "b" / "file").write_bytes(bytes(8192))
    os.replace(work / "a" / "b" / "file", output / "moved")
    with open(output / "moved", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:5] = b"hello"
    with open(output / "moved", "r+b") as file:
        file.truncate(5)
    assert (output / "moved").read_bytes() == b"hello"
    (output / "moved").unlink()
    (work / "a" / "b").rmdir()
    os.kill(os.getpid(), 0)
    assert os.cpu_count()
    assert Path("/proc/self/status").read_text()
    assert Path("/proc/meminfo").read_text()
    Path("/dev/null").write_text("x")
    assert len(os.urandom(8)) == 8


def sweep(table):
    """Each call of a table, with arguments that no call takes: by name, the errno it failed with, or 0."""
    answers = {}
    for name, number in table.items():
        ctypes.set_errno(0)
        answer = LIBC.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
        answers[name] = ctypes.get_errno() if answer == -1 else 0
    return answers


def say(what):
    sys.stdout.write(f"{json.dumps(what)}\n")
    sys.stdout.flush()


def main() -> None:
    scene = json.loads(sys.argv[1])
    if len(sys.argv) > 2:
        ALONE[sys.argv[2]](scene)
    if "sweep" in scene:
        say(sweep(scene["sweep"]))
        return
    ordinary_work(scene)
    whole = scene["inside"] and not scene["without"]
    for name, function in PROBES.items():
        if not whole and name not in CERTAIN:
            continue
        try:
            outcome = ["through", repr(function(scene))]
        except Exception as e:
            outcome = ["blocked", f"{type(e).__name__}: {e}"]
        say([name, *outcome])


if __name__ == "__main__":
    main()
