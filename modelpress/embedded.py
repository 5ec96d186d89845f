"""The whole service for the length of a `with` block, on this machine: for demonstrations, notebooks and tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from modelpress import _connection, _serve, errors
from modelpress.client import Client

START_S = 90.0
STOP_S = 45.0
POLL_S = 0.1


@contextlib.contextmanager
def server(
    home: str | os.PathLike[str],
    *,
    workers: int = 1,
    port: int = 0,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Client]:
    """Starts `modelpress serve`, gives a client of it, and stops it at the end of the block.

    Args:
        home: Directory of everything the service keeps; made if missing.
        workers: Jobs that may run at once.
        port: Where to listen; 0 takes any free port.
        settings: More environment variables of the service, such as MODELPRESS_LEASE_S.

    Raises:
        Unreachable: the service did not start; the message holds what it said.
    """
    directory = Path(home).absolute()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = ["--home", str(directory), "--port", str(port), "--workers", str(workers)]
    with (directory / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "modelpress", "serve", *options],
            env={**os.environ, **(settings or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_serve.die_with_parent,
        )
    try:
        found = _when_ready(process, directory)
        with Client(found.url, found.key) as client:
            yield client
    finally:
        _stop(process)


def _when_ready(process: subprocess.Popen[bytes], home: Path) -> _connection.KeyFile:
    """The address and key, once the service says that it is ready."""
    log = home / "serve.log"
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise errors.Unreachable(f"the service did not start:\n{log.read_text()}")
        if "is ready at" in log.read_text():
            return _connection.KeyFile.model_validate_json((home / "key.json").read_bytes())
        time.sleep(POLL_S)
    raise errors.Unreachable(f"the service is not ready after {START_S:g} s:\n{log.read_text()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
        return
    process.kill()
    process.wait()
