"""The API holds no file in memory, however large: measured on the real process, by the kernel's own high-water mark."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import servers

MIB = 1 << 20
SIZE_MIB = 300
LIMIT_MIB = 200  # of which the process has about 110 when it is idle


def peak_mib(pid: int) -> int:
    """The most resident memory a process has ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    (found,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found) // 1024


def body(digest: hashlib._Hash) -> Iterator[bytes]:
    """Bytes that are made while they are sent."""
    for number in range(SIZE_MIB):
        part = number.to_bytes(8, "big") * (MIB // 8)
        digest.update(part)
        yield part


@pytest.mark.e2e
def test_large_upload_and_download_pass_through_the_api(tmp_path: Path) -> None:
    env = servers.environment(home=tmp_path)
    for module in (["app.migrate"], ["app.admin", "ensure-embedded"]):
        subprocess.run([sys.executable, "-m", *module], cwd=servers.ROOT, env=env, check=True)
    key = json.loads((tmp_path / "key.json").read_text())["key"]
    digest = hashlib.sha256()
    with (
        servers.api(tmp_path) as api,
        httpx.Client(
            base_url=api.url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=120,
            trust_env=False,
        ) as client,
    ):
        sent = client.post("/v1/uploads", params={"filename": "large"}, content=body(digest))
        assert sent.status_code == 201, sent.text
        assert sent.json()["sha256"] == digest.hexdigest()
        made = client.post("/v1/models", json={"upload": sent.json()["id"], "name": "large"})
        with client.stream("GET", f"/v1/models/{made.json()['id']}/content") as answer:
            received = hashlib.sha256()
            for part in answer.iter_bytes(MIB):
                received.update(part)
        assert received.hexdigest() == digest.hexdigest()
        assert peak_mib(api.pid) < LIMIT_MIB
