"""What the README shows is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from tests import examples, servers
from tests.conftest import Service

README = (servers.ROOT / "README.md").read_text("utf-8")
(PROGRAM,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_run_from_upload_to_report_has_fewer_than_20_lines() -> None:
    assert len(PROGRAM.splitlines()) < 20


@pytest.mark.e2e
def test_run_from_upload_to_report_works(service: Service, tmp_path: Path) -> None:
    examples.digits(tmp_path)
    environment = servers.environment(home=service.home)
    argv = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if "%" not in line]
    assert [row[0] for row in rows] == ["baseline", "prune.magnitude", "quantize.int8"]
    assert int(rows[2][2]) < int(rows[0][2]) / 2
    assert onnxruntime.InferenceSession(str(tmp_path / "small" / "model.onnx"))


def test_everything_the_readme_points_to_is_there() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert [name for name in targets if not (servers.ROOT / name).exists()] == []


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_exist(target: str) -> None:
    makefile = (servers.ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
