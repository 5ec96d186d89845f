"""The commands of docs/api.md and the Python of docs/quickstart.md, run as they stand there against a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest

from modelpress import embedded
from tests import examples, servers

pytestmark = pytest.mark.e2e


def blocks(page: str, language: str, naming: str = "") -> str:
    """All that a page shows in a language, in its order; only blocks that name something, where that is given."""
    text = (servers.ROOT / "docs" / page).read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return "\n".join(block for block in found if naming in block)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What leads a client to a server that runs."""
    home = tmp_path_factory.mktemp("home")
    with embedded.server(home):
        server = json.loads((home / "key.json").read_text())
        yield servers.environment(url=server["url"], api_key=server["key"])


def run(argv: list[str], directory: Path, environment: dict[str, str]) -> str:
    """What a program prints in a directory that holds model.onnx and data.npz."""
    examples.digits(directory)
    done = subprocess.run(argv, cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_curl_leads_from_upload_to_artifact(tmp_path: Path, environment: dict[str, str]) -> None:
    commands = blocks("api.md", "bash")
    said = run(["bash", "-euo", "pipefail", "-c", commands], tmp_path, environment)
    assert " succeeded" in said
    assert re.search(r"[1-9]\d* event: stage", said)
    small = (tmp_path / "small.onnx").read_bytes()
    assert (tmp_path / "first-100-bytes").read_bytes() == small[:100]
    assert onnxruntime.InferenceSession(small).get_inputs()[0].name == "image"


def test_python_leads_from_upload_to_artifact(tmp_path: Path, environment: dict[str, str]) -> None:
    program = blocks("quickstart.md", "python", naming="modelpress")
    said = run([sys.executable, "-c", program], tmp_path, environment)
    assert [line.split()[0] for line in said.splitlines()] == [
        "baseline",
        "prune.magnitude",
        "quantize.int8",
    ]
    assert onnxruntime.InferenceSession(str(tmp_path / "small" / "model.onnx"))
