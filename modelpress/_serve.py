"""`modelpress serve`: the whole service on one machine, as child processes of one supervisor.

supervisor -> migrate, key file (once) -> API, one worker for inspections, N workers for jobs

A worker that dies is started again: jobs live in the database, so nothing is lost with it. Children lead sessions of
their own, so that a Ctrl-C reaches only the supervisor, which then stops them in order.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import httpx

READY_S = 60.0
STOP_S = 20.0
DRAIN_S = 5
POLL_S = 0.2
STEADY_S = 60.0  # a child that ran this long may die again without being slowed down
MAX_PAUSE_S = 30.0
API_DEATHS = 5  # in a row, before the supervisor gives up
LOG_BYTES = 10 << 20
TAIL_LINES = 25
_SERVER = {"fastapi", "uvicorn", "celery", "sqlalchemy", "app"}
_WORKER = {"torch", "onnx", "onnxruntime", "workers"}
NO_FENCE = 97  # exit status of a worker whose kernel can't fence it in

Say = Callable[[str], None]


class ServeFailed(Exception):
    """The service did not start, or could not be kept running."""


class Plan(NamedTuple):
    """What to run."""

    host: str
    port: int
    home: Path
    workers: int

    @property
    def url(self) -> str:
        """Where the API answers."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def missing_extra(*, workers: int) -> str:
    """The extra that is not installed, or ''."""
    needed = _SERVER | _WORKER if workers else _SERVER
    missing = {m for m in needed if importlib.util.find_spec(m) is None}
    return "server" if missing & _SERVER else "worker" if missing else ""


def run(plan: Plan, say: Say) -> None:
    """Runs the service until a signal to stop arrives.

    Raises:
        ServeFailed: it did not start, or could not be kept running; the message holds the end of the log.
    """
    plan.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(plan.home), _signals() as stop:
        plan = plan._replace(port=_free_port(plan.host, plan.port))
        supervisor = Supervisor(plan, say, stop)
        try:
            supervisor.start()
            supervisor.watch()
        finally:
            supervisor.stop()


class Child:
    """A process of the service, its log and its history."""

    def __init__(self, name: str, argv: list[str], env: dict[str, str], log: Path) -> None:
        self.name, self.argv, self.env, self.log = name, argv, env, log
        self.deaths, self.started, self.restart_at = 0, 0.0, 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self.started = time.monotonic()

    def died(self) -> int | None:
        """The exit status, once; the process is then no longer known."""
        status = self.process.poll() if self.process else None
        if status is not None:
            self._kill_group()
            self.process = None
        return status

    def plan_restart(self) -> float:
        """Seconds until the next start, twice as many for each early death."""
        now = time.monotonic()
        self.deaths = 1 if now - self.started > STEADY_S else self.deaths + 1
        pause_s = min(MAX_PAUSE_S, 0.25 * 2.0**self.deaths)
        self.restart_at = now + pause_s
        return pause_s

    def terminate(self) -> None:
        if self.process:
            self.process.terminate()

    def wait(self, until: float) -> None:
        """Waits for the end; when the time is up, kills the whole group."""
        if not self.process:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, until - time.monotonic()))
        self._kill_group()
        self.process.wait()
        self.process = None

    def tail(self) -> str:
        """The end of the log, each line marked with the name of the process."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 64_000))
            lines = log.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join(f"{self.name} | {line}" for line in lines)

    def _kill_group(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


class Supervisor:
    """Starts the children, keeps them running, stops them."""

    def __init__(self, plan: Plan, say: Say, stop: threading.Event) -> None:
        self.plan, self.say, self.stopping = plan, say, stop
        self.env = _environment(plan)
        self.logs = plan.home / "logs"
        self.logs.mkdir(exist_ok=True)
        self.api = self._child("api", "-m", "app.main")
        self.workers = [
            self._child(name, *_worker_argv(name, queues)) for name, queues in _workers(plan)
        ]

    def start(self) -> None:
        """Prepares the database, starts everything and waits until the API is ready.

        Raises:
            ServeFailed: something did not start.
        """
        self._once("migrate", "-m", "app.migrate")
        for child in (self.api, *self.workers):
            child.start()
        self._once("admin", "-m", "app.admin", "ensure-embedded")
        self._wait_ready()
        if not self.stopping.is_set():
            self.say(f"ModelPress is ready at {self.plan.url}")
            self.say(f"its key is in {self.plan.home / 'key.json'}, its logs are in {self.logs}")
            self.say("Ctrl-C stops it")

    def watch(self) -> None:
        """Starts again what dies, until asked to stop.

        Raises:
            ServeFailed: the API keeps dying, or workers can't run on this machine.
        """
        while not self.stopping.wait(POLL_S):
            for child in (self.api, *self.workers):
                self._revive(child)

    def stop(self) -> None:
        """Stops the workers, which hand their jobs back, then the API; kills what does not obey."""
        for child in self.workers:
            child.terminate()
        until = time.monotonic() + STOP_S
        for child in self.workers:
            child.wait(until)
        self.api.terminate()
        self.api.wait(time.monotonic() + STOP_S)

    def _revive(self, child: Child) -> None:
        if child.process is None:
            if time.monotonic() >= child.restart_at:
                child.start()
            return
        status = child.died()
        if status is None:
            return
        if status == NO_FENCE:
            raise ServeFailed(f"workers can't be fenced in on this machine\n{child.tail()}")
        pause_s = child.plan_restart()
        if child is self.api and child.deaths >= API_DEATHS:
            raise ServeFailed(f"the API died {child.deaths} times in a row\n{child.tail()}")
        self.say(f"{child.name} ended with status {status}; it starts again in {pause_s:g} s")
        if child.deaths > 1:
            self.say(child.tail())

    def _once(self, name: str, *arguments: str) -> None:
        child = self._child(name, *arguments)
        child.start()
        assert child.process is not None
        status = child.process.wait()
        if status and not self.stopping.is_set():
            raise ServeFailed(f"{' '.join(arguments)} ended with status {status}\n{child.tail()}")

    def _wait_ready(self) -> None:
        until = time.monotonic() + READY_S
        while not self.stopping.is_set():
            if self.api.died() is not None:
                raise ServeFailed(f"the API did not start\n{self.api.tail()}")
            if _is_ready(self.plan.url):
                return
            if time.monotonic() > until:
                raise ServeFailed(f"the API is not ready after {READY_S:g} s\n{self.api.tail()}")
            self.stopping.wait(POLL_S / 2)

    def _child(self, name: str, *arguments: str) -> Child:
        log = self.logs / f"{name}.log"
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        return Child(name, [sys.executable, *arguments], self.env, log)


def _workers(plan: Plan) -> list[tuple[str, str]]:
    """Name and queues of each. Inspections have a worker of their own: they are short and people wait for them."""
    jobs = [(f"worker-{number}", "cpu,gpu") for number in range(1, plan.workers + 1)]
    return [("ingest", "ingest"), *jobs] if jobs else []


def _worker_argv(name: str, queues: str) -> list[str]:
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    place = ["-n", f"{name}@%h", "-Q", queues, "-c", "1"]
    return ["-m", "celery", "-A", "workers.tasks:celery", "worker", *place, *quiet]


def _environment(plan: Plan) -> dict[str, str]:
    own = {
        "MODELPRESS_HOME": str(plan.home),
        "MODELPRESS_HOST": plan.host,
        "MODELPRESS_PORT": str(plan.port),
        "PYTHONUNBUFFERED": "1",
    }
    return {"MODELPRESS_DRAIN_S": str(DRAIN_S), **os.environ, **own}


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _free_port(host: str, port: int) -> int:
    """The port, if it is free; any free one for 0.

    Raises:
        ServeFailed: it is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as e:
            raise ServeFailed(
                f"{host}:{port} can't be listened on: {e.strerror}; choose another with --port, or 0 for any"
            ) from e
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Holds the home directory for one supervisor."""
    with (home / "serve.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise ServeFailed(
                f"another `modelpress serve` uses {home}; stop it, or choose another with --home"
            ) from e
        yield


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that is set when the service is asked to stop."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, ask) for number in wanted]
    try:
        yield stop
    finally:
        for number, handler in zip(wanted, before, strict=True):
            signal.signal(number, handler)


_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """For `preexec_fn`: the child is asked to stop when its parent is gone, even killed with -9. Linux only."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
