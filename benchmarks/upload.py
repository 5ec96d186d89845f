"""How fast a large file comes in and goes out, beside a plain copy of it with the same hash, and what the API keeps in memory.

Every round measures all of them, so that a machine that slows down slows down each. A client and the service share
the machine here: the client sends by sendfile and costs little, but on a network the figures will differ.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from benchmarks import _record
from tests import servers

MIB = 1 << 20
MEMORY_LIMIT_MIB = 200
LEAST_RATIO = 0.5


@dataclass(frozen=True)
class Service:
    """A served API, its process and a key of it."""

    url: str
    pid: int
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def peak_rss_mib(self) -> float:
        """The most memory its process has ever held."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM")]
        return int(peak) / 1024


def main() -> int:
    """The entry point; 1 where a limit does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upload", description=__doc__)
    parser.add_argument("--mib", type=int, default=2048, help="size of the file")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-", dir=_roomy()) as folder:
        figures = _measure(Path(folder), asked.mib, asked.rounds)
    _print(figures)
    print(f"\nwritten to {_record.write('upload', figures)}")
    return 0 if figures["holds"] else 1


def _roomy() -> str | None:
    """Where the files go: a temporary folder that lies in memory would measure something else."""
    return os.environ.get("MODELPRESS_BENCH_DIR")


def _measure(folder: Path, mib: int, rounds: int) -> dict[str, object]:
    source = folder / "source"
    sha256 = _write_random(source, mib)
    home = folder / "home"
    home.mkdir()
    key = _prepare(home)
    with servers.api(home, sweep_in_api=False) as running:
        service = Service(running.url, running.pid, key)
        idle_mib = service.peak_rss_mib()
        seconds: dict[str, list[float]] = {}
        for number in range(rounds):
            for name, deed in _deeds(service, source, folder, sha256).items():
                began = time.perf_counter()
                deed()
                seconds.setdefault(name, []).append(time.perf_counter() - began)
                print(f"round {number + 1} {name:16} {mib / seconds[name][-1]:7.0f} MiB/s")
        return _figures(mib, seconds, idle_mib, service.peak_rss_mib())


def _deeds(
    service: Service, source: Path, folder: Path, sha256: str
) -> dict[str, Callable[[], None]]:
    made: list[str] = []
    return {
        "copy": lambda: _copy(source, folder / "copy", sha256, synced=False),
        "copy, on disk": lambda: _copy(source, folder / "copy", sha256, synced=True),
        "upload": lambda: made.append(_upload(service, source, sha256)),
        "download": lambda: _download(service, _model(service, made[-1]), folder / "down", sha256),
    }


def _write_random(path: Path, mib: int) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(mib):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _prepare(home: Path) -> str:
    environment = servers.environment(home=home)
    commands = (["app.migrate"], ["app.admin", "create-key", "--project", "bench"])
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            env=environment,
            cwd=servers.ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
    return done.stdout.strip()


def _copy(source: Path, target: Path, sha256: str, *, synced: bool) -> None:
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(MIB):
            digest.update(block)
            writer.write(block)
        if synced:
            writer.flush()
            os.fsync(writer.fileno())
    assert digest.hexdigest() == sha256
    target.unlink()


def _upload(service: Service, source: Path, sha256: str) -> str:
    connection = http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=600)
    connection.putrequest("PUT", f"/v1/uploads/source?sha256={sha256}")
    headers = {**service.headers, "Content-Length": str(source.stat().st_size)}
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    with source.open("rb") as file:
        connection.sock.sendfile(file)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    assert response.status == 201, body
    return response.headers["Location"].rpartition("/")[2]


def _model(service: Service, upload: str) -> str:
    made = httpx.post(
        f"{service.url}/v1/models", json={"upload": upload}, headers=service.headers, timeout=600
    )
    made.raise_for_status()
    return f"{service.url}{made.headers['Location']}/content"


def _download(service: Service, url: str, target: Path, sha256: str) -> None:
    digest, block = hashlib.sha256(), memoryview(bytearray(MIB))
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=600)
    connection.request("GET", urlsplit(url).path, headers=service.headers)
    response = connection.getresponse()
    with target.open("wb") as file:
        while size := response.readinto(block):
            digest.update(block[:size])
            file.write(block[:size])
    connection.close()
    assert digest.hexdigest() == sha256
    target.unlink()


def _figures(
    mib: int, seconds: dict[str, list[float]], idle_mib: float, peak_mib: float
) -> dict[str, object]:
    ratios = {
        name: _record.spread([c / s for c, s in zip(seconds["copy"], seconds[name], strict=True)])
        for name in seconds
    }
    fast = all(ratios[name]["median"] >= LEAST_RATIO for name in ("upload", "download"))
    return {
        "file_mib": mib,
        "rounds": len(seconds["copy"]),
        "mib_per_s": {
            name: _record.spread([mib / value for value in values])
            for name, values in seconds.items()
        },
        "ratio_to_copy": ratios,
        "least_ratio": LEAST_RATIO,
        "idle_rss_mib": idle_mib,
        "peak_rss_mib": peak_mib,
        "peak_rss_limit_mib": MEMORY_LIMIT_MIB,
        "holds": fast and peak_mib < MEMORY_LIMIT_MIB,
    }


def _print(figures: dict[str, object]) -> None:
    speeds, ratios = figures["mib_per_s"], figures["ratio_to_copy"]
    assert isinstance(speeds, dict)
    assert isinstance(ratios, dict)
    print(f"\n{figures['file_mib']} MiB, {figures['rounds']} rounds; medians, and their range")
    print(f"{'':16} {'MiB/s':>7} {'':15} {'of a copy':>9}")
    for name, speed in speeds.items():
        spread = f"({speed['min']:.0f}-{speed['max']:.0f})"
        print(f"{name:16} {speed['median']:7.0f} {spread:15} {ratios[name]['median']:9.2f}")
    print(
        f"memory of the API: {figures['idle_rss_mib']:.0f} MiB idle, {figures['peak_rss_mib']:.0f} MiB at most "
        f"(limit {MEMORY_LIMIT_MIB}); {'holds' if figures['holds'] else 'DOES NOT HOLD'}"
    )


if __name__ == "__main__":
    sys.exit(main())
