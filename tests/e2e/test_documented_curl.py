"""The commands of docs/api.md, run as they stand there, one after the other, against a real server and worker."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import onnxruntime
import pytest

from modelpress import embedded
from tests import examples, servers

BLOCKS = re.findall(
    r"^```bash\n(.*?)^```", (servers.ROOT / "docs" / "api.md").read_text(), re.DOTALL | re.MULTILINE
)


@pytest.mark.e2e
def test_commands_of_the_api_page_lead_from_upload_to_artifact(tmp_path: Path) -> None:
    examples.digits(tmp_path)
    with embedded.server(tmp_path / "home"):
        server = json.loads((tmp_path / "home" / "key.json").read_text())
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(BLOCKS)],
            cwd=tmp_path,
            env=servers.environment(url=server["url"], api_key=server["key"]),
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " succeeded" in done.stdout
    assert re.search(r"[1-9]\d* event: stage", done.stdout)
    small = (tmp_path / "small.onnx").read_bytes()
    assert (tmp_path / "first-100-bytes").read_bytes() == small[:100]
    assert onnxruntime.InferenceSession(small).get_inputs()[0].name == "image"
