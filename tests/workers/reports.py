"""Reports as an honest engine writes them, for tests of those who read them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from modelpress.spec import order, report

RECIPE = {"steps": [{"kind": "prune.magnitude", "sparsity": 0.5}, {"kind": "quantize.int8"}]}
COMPRESS = {"task": "compress", "model": {"path": "input/model.onnx"}, "recipe": RECIPE, "seed": 7}
INSPECT = {"task": "inspect", "kind": "dataset", "file": {"path": "input/data.npz"}}
CONTENT = b"small model"
NAMES = ("baseline", "prune.magnitude", "quantize.int8")


def stage(index: int) -> report.Stage:
    """A measured stage: the baseline or a step."""
    times = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "mean_ms", "std_ms", "min_ms"), 1.5)
    return report.Stage(
        name=NAMES[index],
        step=index - 1 if index else None,
        seconds=0.25,
        quality=None,
        size=report.Size(
            file_bytes=10,
            zipped_bytes=9,
            entropy_bytes=8,
            theoretical_bytes=8,
            parameters=2,
            nonzero_parameters=2,
            bits_per_parameter=32.0,
        ),
        latency=report.Latency(
            **times,
            runs=10,
            warmup=2,
            batch=1,
            threads=1,
            device="cpu",
            original_p50_ms=1.5,
            ratio=1.0,
        ),
        cost=report.Cost(macs=2, macs_by_operator={"Gemm": 2}),
    )


def artifact(content: bytes = CONTENT, name: str = "model.onnx") -> report.ArtifactInfo:
    """What a report says of a file."""
    sha256 = hashlib.sha256(content).hexdigest()
    return report.ArtifactInfo(name=name, format="onnx", size_bytes=len(content), sha256=sha256)


def finished(**changes: object) -> report.Report:
    """The report of a job that succeeded; `changes` are not validated."""
    asked = order.CompressOrder.model_validate(COMPRESS)
    texts = ("modelpress", "python", "torch", "onnx", "onnxruntime", "cpu", "device", "sandbox")
    whole = report.Report(
        model="model.onnx",
        model_sha256="0" * 64,
        recipe=asked.recipe,
        seed=asked.seed,
        data=None,
        environment=report.Environment(**dict.fromkeys(texts, "1"), cpu_flags=(), cores=1),
        stages=tuple(map(stage, range(3))),
        outcome="met",
        artifacts=(artifact(),),
        verification=report.Verification(
            ok=True, samples=1, max_abs_difference=0.0, tolerance=1e-4
        ),
        complete=True,
    )
    return whole.model_copy(update=changes)


def leave(jobdir: Path, content: report.Report | str | bytes) -> Path:
    """Writes a report, beside an artifact, where an engine leaves them."""
    artifacts = jobdir / order.ARTIFACTS
    artifacts.mkdir(parents=True, exist_ok=True)
    (artifacts / "model.onnx").write_bytes(CONTENT)
    text = content if isinstance(content, str | bytes) else content.model_dump_json()
    path = jobdir / order.REPORT
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
