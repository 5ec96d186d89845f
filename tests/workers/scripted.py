"""What scripted engines have in common; its text stands at the top of each. The real engine is tested elsewhere."""

import json
import os
import sys
import time
from pathlib import Path

from modelpress.spec import order, report

TASK, JOBDIR = sys.argv[1], Path(sys.argv[2])
ASKED = json.loads((JOBDIR / order.ORDER).read_bytes())
NAMES = ["baseline", *(step["kind"] for step in ASKED.get("recipe", {}).get("steps", ())), "verify"]


def say(stage, fraction, event="progress", message="", **changes):
    known = {"event": event, "stage": stage, "stages": len(NAMES), "name": NAMES[stage]}
    print(json.dumps({**known, "fraction": fraction, "message": message, **changes}), flush=True)


def stage(index):
    return report.Stage(
        name=NAMES[index],
        step=index - 1 if index else None,
        seconds=0.1,
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
            **dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "mean_ms", "std_ms", "min_ms"), 1.0),
            runs=10,
            warmup=2,
            batch=1,
            threads=1,
            device="cpu",
            original_p50_ms=1.0,
            ratio=1.0,
        ),
        cost=report.Cost(macs=2, macs_by_operator={"Gemm": 2}),
    )


def measured(stages, **changes):
    return report.Report(
        model="model.onnx",
        model_sha256="0" * 64,
        recipe=ASKED["recipe"],
        seed=ASKED["seed"],
        data=None,
        environment=report.Environment(
            modelpress="0",
            python="3",
            torch="2",
            onnx="1",
            onnxruntime="1",
            cpu="cpu",
            cpu_flags=(),
            cores=1,
            device="cpu",
            sandbox="none",
        ),
        stages=tuple(map(stage, range(stages))),
    ).model_copy(update=changes)


def write(relative, content):
    path = JOBDIR / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".new")
    written.write_bytes(content if isinstance(content, bytes) else content.encode())
    return written.replace(path)


def artifact(content=b"small model", name="model.onnx", **changes):
    import hashlib

    write(f"{order.ARTIFACTS}/{name}", content)
    true = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return report.ArtifactInfo(name=name, format="onnx", **{**true, **changes})


def verified(*artifacts, **changes):
    known = {
        "outcome": "met",
        "artifacts": artifacts or (artifact(),),
        "verification": report.Verification(
            ok=True, samples=1, max_abs_difference=0.0, tolerance=1e-4
        ),
        "complete": True,
    }
    return measured(len(NAMES) - 1, **{**known, **changes})


def fail(**failure):
    write(order.FAILURE, json.dumps(failure))
    sys.exit(order.EXIT_FAILED)


def as_told():
    """What an honest engine does."""
    if TASK == "compress":
        for index in range(len(NAMES) - 1):
            say(index, index / len(NAMES), "stage_started")
            write(order.REPORT, measured(index + 1).model_dump_json())
            say(index, (index + 1) / len(NAMES), "stage_done", "measured")
        artifact()
    if TASK == "verify":
        write(order.REPORT, verified().model_dump_json())
        say(len(NAMES) - 1, 1.0, "stage_done")
