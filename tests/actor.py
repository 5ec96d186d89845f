"""A stand-in for the engine child that speaks its protocol and does what the name of the recipe says.

    'sleep 2'     takes 2 s between the baseline and the step
    'fail CLASS'  ends with a failure of that class, such as 'transient', after the baseline
    'kill'        is killed by a signal from nowhere after the baseline
    'mute'        ends well without having made anything
    otherwise     succeeds at once

Tests of the service run it inside the real fence, as `python -c SOURCE compress|verify|inspect JOBDIR`: what is tested
is everything around the engine, in a tenth of the time that importing torch takes.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from modelpress.spec import order
from modelpress.spec.inspection import DatasetInspection, ModelInspection, TensorInfo
from modelpress.spec.progress import Progress
from modelpress.spec.report import (
    ArtifactInfo,
    Cost,
    Environment,
    Latency,
    Report,
    Size,
    Stage,
    Verification,
)
from modelpress.spec.sensitivity import Layer, Measurement, Sensitivity
from modelpress.spec.state import Failure, Outcome

ARTIFACT = "model.onnx"

MODEL = ModelInspection(
    format="onnx",
    opset=17,
    inputs=(TensorInfo(name="x", dtype="float32", shape=("N", 4)),),
    outputs=(TensorInfo(name="y", dtype="float32", shape=("N", 3)),),
    parameters=12,
    macs=12,
    operators={"MatMul": 1},
)
DATASET = DatasetInspection(
    format="npz",
    samples=10,
    arrays=(TensorInfo(name="x", dtype="float32", shape=(10, 4)),),
    labels=TensorInfo(name="labels", dtype="int64", shape=(10,)),
    classes=("0", "1", "2"),
    histogram=(4, 3, 3),
)
ENVIRONMENT = Environment(
    modelpress="0",
    python="3",
    torch="2",
    onnx="1",
    onnxruntime="1",
    cpu="none",
    cpu_flags=(),
    cores=1,
    device="cpu",
    sandbox="none",
)
STAGE = Stage(
    name="baseline",
    step=None,
    seconds=0.1,
    quality=None,
    size=Size(
        file_bytes=100,
        zipped_bytes=90,
        entropy_bytes=80,
        theoretical_bytes=70,
        parameters=12,
        nonzero_parameters=12,
        bits_per_parameter=32,
    ),
    latency=Latency(
        p50_ms=1,
        p90_ms=1,
        p99_ms=1,
        mean_ms=1,
        std_ms=0,
        min_ms=1,
        runs=1,
        warmup=0,
        batch=1,
        threads=1,
        device="cpu",
        original_p50_ms=1,
        ratio=1,
    ),
    cost=Cost(macs=12, macs_by_operator={"MatMul": 12}),
)


def main(task: str, jobdir: Path) -> int:
    asked = json.loads((jobdir / order.ORDER).read_text())
    if task == "inspect":
        return inspect(jobdir, order.InspectOrder.model_validate(asked))
    wanted = order.CompressOrder.model_validate(asked)
    return verify(jobdir, wanted) if task == "verify" else compress(jobdir, wanted)


def inspect(jobdir: Path, asked: order.InspectOrder) -> int:
    if (jobdir / asked.file.path).read_bytes().startswith(b"bad"):
        return fail(jobdir, "user_input", "bad_model", "inspect")
    found = MODEL if asked.kind == "model" else DATASET
    write(jobdir / order.INSPECTION, found.model_dump_json())
    return 0


def compress(jobdir: Path, asked: order.CompressOrder) -> int:
    words = asked.recipe.name.split()
    write(jobdir / order.REPORT, report(asked, stages=1).model_dump_json())
    say(asked, "stage_done", 0)
    if "sleep" in words:
        pause(asked, float(words[words.index("sleep") + 1]))
    if "fail" in words:
        return fail(jobdir, words[words.index("fail") + 1], "acted", "steps/0")
    if "kill" in words:
        os.kill(os.getpid(), signal.SIGKILL)
    if "mute" in words:
        return 0
    stages = len(asked.recipe.steps) + 1
    write(jobdir / order.REPORT, report(asked, stages=stages).model_dump_json())
    write(jobdir / order.ARTIFACTS / ARTIFACT, content(asked))
    for number in range(sum(step.analyzes for step in asked.recipe.steps)):
        name = order.sensitivity_name(number + 1)
        write(jobdir / order.ARTIFACTS / name, table(asked).model_dump_json())
    say(asked, "stage_done", stages - 1)
    return 0


def verify(jobdir: Path, asked: order.CompressOrder) -> int:
    if "mute" in asked.recipe.name.split():
        return 0
    infos = tuple(map(described, sorted((jobdir / order.ARTIFACTS).iterdir())))
    good = Verification(ok=True, samples=1, max_abs_difference=0.0, tolerance=1e-5)
    whole = report(asked, stages=len(asked.recipe.steps) + 1).model_copy(
        update={
            "outcome": Outcome.MET,
            "artifacts": infos,
            "verification": good,
            "complete": True,
        }
    )
    write(jobdir / order.REPORT, whole.model_dump_json())
    return 0


def described(path: Path) -> ArtifactInfo:
    made = path.read_bytes()
    return ArtifactInfo(
        name=path.name,
        format="json" if path.suffix == ".json" else "onnx",
        size_bytes=len(made),
        sha256=hashlib.sha256(made).hexdigest(),
    )


def table(asked: order.CompressOrder) -> Sensitivity:
    """What an analysis of the model finds."""
    row = Measurement(
        layer="w",
        method="bits",
        amount=4,
        bytes_before=48,
        bytes_after=10,
        error=0.25,
        agreement=0.9,
        accuracy=0.8,
    )
    return Sensitivity(
        model_sha256=asked.model.sha256,
        seed=asked.seed,
        samples=10,
        group_size=32,
        accuracy=0.9,
        layers=(Layer(name="w", kind="MatMul", shape=(4, 3)),),
        rows=(row,),
    )


def content(asked: order.CompressOrder) -> str:
    return f"compressed with seed {asked.seed}"


def pause(asked: order.CompressOrder, seconds: float) -> None:
    began = time.monotonic()
    while (spent := time.monotonic() - began) < seconds:
        say(asked, "progress", 1, fraction=spent / seconds)
        time.sleep(0.05)


def fail(jobdir: Path, class_: str, code: str, stage: str) -> int:
    failure = Failure(**{"class": class_}, code=code, stage=stage, message="as the recipe says")
    write(jobdir / order.FAILURE, failure.model_dump_json(by_alias=True))
    return order.EXIT_FAILED


def say(asked: order.CompressOrder, event: str, stage: int, fraction: float = 0.5) -> None:
    names = ["baseline", *(step.kind for step in asked.recipe.steps), "verify"]
    progress = Progress(
        event=event, stage=stage, stages=len(names), name=names[stage], fraction=fraction
    )
    print(progress.model_dump_json(), flush=True)  # noqa: T201


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(path.name + ".part")
    staged.write_text(text)
    staged.rename(path)


def report(asked: order.CompressOrder, *, stages: int) -> Report:
    """A partial report with so many stages."""
    kinds = ["baseline", *(step.kind for step in asked.recipe.steps)]
    return Report(
        model=asked.model.name,
        model_sha256=asked.model.sha256,
        recipe=asked.recipe,
        seed=asked.seed,
        data=None,
        environment=ENVIRONMENT,
        stages=tuple(
            STAGE.model_copy(update={"name": name, "step": index - 1 if index else None})
            for index, name in enumerate(kinds[:stages])
        ),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
