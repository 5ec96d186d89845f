"""`make demo`, as a user runs it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest

from tests import servers

pytestmark = pytest.mark.e2e


@contextlib.contextmanager
def demo(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo with its own place for temporary files, `directory`/tmp."""
    (directory / "tmp").mkdir()
    environment = {**servers.environment(), "TMPDIR": str(directory / "tmp")}
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "demo", "--out", str(directory / "out")],
        cwd=servers.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def left_running(directory: Path) -> list[str]:
    """The commands of processes that have the directory in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(directory) in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().decode())
    return found


def test_demo_ends_with_the_table_and_leaves_its_results(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    for part in ("baseline", "prune.magnitude", "quantize.int8", "MACs", "outcome met", "verified"):
        assert part in said
    out = tmp_path / "out"
    made = {path.name for path in out.iterdir()}
    assert made == {"model.onnx", "report.json", "report.svg", "report.txt"}
    report = json.loads((out / "report.json").read_text())
    first, *_, last = report["stages"]
    assert first["quality"]["accuracy"] > 0.95
    assert last["quality"]["accuracy"] > first["quality"]["accuracy"] - 0.02
    assert last["size"]["file_bytes"] < 0.4 * first["size"]["file_bytes"]
    assert onnxruntime.InferenceSession(str(out / "model.onnx")).get_inputs()[0].name == "image"
    assert list((tmp_path / "tmp").glob("modelpress*")) == []  # torch leaves a folder of its own
    assert left_running(tmp_path) == []


def test_interrupted_demo_stops_what_it_started(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        assert process.stdout is not None
        assert any("listening on" in line for line in process.stdout)
        assert left_running(tmp_path) != []
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "everything that was started is stopped" in said
    assert left_running(tmp_path) == []
    assert list((tmp_path / "tmp").glob("modelpress*")) == []  # torch leaves a folder of its own
