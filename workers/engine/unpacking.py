"""The packed artifact, decoded in a fresh process that loads numpy and the coder alone, beside the model that it must give.

python -m workers.engine unpack JOBDIR
"""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from modelpress import packed
from modelpress.spec import order
from workers.engine import outbox
from workers.engine.errors import ExportMismatch

_CHUNK_BYTES = 1 << 20


class Unpacked(BaseModel):
    """What came out of the packed artifact: the model, byte for byte."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    size_bytes: int
    seconds: float


def unpack(jobdir: Path) -> None:
    """Unpacks JOBDIR/output/artifacts/model.mpk, compares, and leaves what it found for the verification.

    Raises:
        ExportMismatch: the file can't be unpacked, or gives another model than model.onnx.
    """
    artifacts, target = jobdir / order.ARTIFACTS, jobdir / order.WORK / order.ONNX
    started = time.perf_counter()
    try:
        found = packed.unpack(artifacts / order.PACKED, target)
    except packed.PackedError as e:
        raise ExportMismatch(f"{order.PACKED} can't be unpacked: {e}") from e
    seconds = time.perf_counter() - started
    if not _same(target, artifacts / order.ONNX):
        raise ExportMismatch(f"{order.PACKED} gives another file than {order.ONNX}")
    target.unlink()
    told = Unpacked(sha256=found.sha256, size_bytes=found.size_bytes, seconds=seconds)
    outbox.write(jobdir / order.UNPACKED, told)


def read(jobdir: Path) -> Unpacked | None:
    """What `unpack` found; None where it did not run."""
    path = jobdir / order.UNPACKED
    return Unpacked.model_validate_json(path.read_bytes()) if path.exists() else None


def _same(one: Path, other: Path) -> bool:
    with one.open("rb") as a, other.open("rb") as b:
        while chunk := a.read(_CHUNK_BYTES):
            if chunk != b.read(_CHUNK_BYTES):
                return False
        return not b.read(1)
