"""Reports as a job leaves them, with figures that are easy to check by eye."""

from __future__ import annotations

from modelpress.spec import named
from modelpress.spec.constraint import Constraint, Goal, Metric, judge
from modelpress.spec.report import (
    ArtifactInfo,
    Control,
    Cost,
    Curve,
    CurvePoint,
    DataUse,
    Environment,
    Latency,
    Quality,
    Report,
    Size,
    SizeParts,
    Skipped,
    Stage,
    Touched,
    Verification,
)
from modelpress.spec.state import Outcome


def stage(name: str, step: int | None, *, file_bytes: int, accuracy: float | None) -> Stage:
    return Stage(
        name=name,
        step=step,
        seconds=2.5,
        quality=Quality(
            samples=450,
            accuracy=accuracy,
            agreement=0.99,
            max_abs_difference=0.1,
            relative_l2_difference=0.01,
        ),
        size=Size(
            file_bytes=file_bytes,
            zipped_bytes=file_bytes // 2,
            entropy_bytes=file_bytes // 2,
            theoretical_bytes=file_bytes // 2,
            parameters=100_000,
            nonzero_parameters=100_000,
            bits_per_parameter=32,
        ),
        latency=Latency(
            p50_ms=0.0512,
            p90_ms=0.06,
            p99_ms=0.07,
            mean_ms=0.052,
            std_ms=0.004,
            min_ms=0.05,
            runs=200,
            warmup=20,
            batch=1,
            threads=2,
            device="cpu",
            original_p50_ms=0.064,
            ratio=0.8,
        ),
        cost=Cost(macs=1_234_567, macs_by_operator={"Conv": 1_234_567}),
        touched=() if step is None else (Touched(layer="conv", change="zeros"),),
    )


def controls() -> tuple[Control, ...]:
    """Both, worse and better than the stage they belong to."""
    quality = stage("", None, file_bytes=1, accuracy=0.96).quality
    assert quality is not None
    better = quality.model_copy(update={"accuracy": 0.985})
    return (
        Control(name="scratch_e", epochs=1, quality=quality),
        Control(name="scratch_b", epochs=4, quality=better, note="E is 1"),
    )


def packed(report: Report) -> Report:
    """The report of a recipe that ends with a packed file."""
    parts = SizeParts(
        weights_bytes=200_000,
        codebooks_bytes=50_000,
        tables_bytes=0,
        biases_bytes=20_000,
        norms_bytes=0,
        headers_bytes=10_000,
    )
    coded = parts.model_copy(update={"weights_bytes": 60_000, "tables_bytes": 4_000})
    last = report.stages[-1]
    size = last.size.model_copy(
        update={"file_parts": parts, "coded_parts": coded, "coded_bytes": 144_000}
    )
    assert report.verification is not None
    checked = report.verification.model_copy(
        update={"unpacked_sha256": "0" * 64, "unpack_seconds": 0.0123}
    )
    artifact = ArtifactInfo(name="model.mpk", format="mpk", size_bytes=144_000, sha256="1" * 64)
    return report.model_copy(
        update={
            "stages": (*report.stages[:-1], last.model_copy(update={"size": size})),
            "verification": checked,
            "artifacts": (*report.artifacts, artifact),
        }
    )


def curves() -> tuple[Curve, ...]:
    """A picture of two lines, one of them with intervals and a point more."""
    ticket = (
        CurvePoint(x=0.2, mean=0.98, low=0.975, high=0.985, runs=3),
        CurvePoint(x=1.0, mean=0.97, low=0.96, high=0.98, runs=3),
    )
    axes = {"x": "fraction of weights kept", "y": "accuracy"}
    return (
        Curve(name="ticket", **axes, points=ticket),
        Curve(name="random_reinit", **axes, points=(CurvePoint(x=0.2, mean=0.951),)),
    )


def report(*, labels: bool = True, complete: bool = True) -> Report:
    baseline = stage("baseline", None, file_bytes=1_000_000, accuracy=0.98 if labels else None)
    pruned = stage("prune.magnitude", 0, file_bytes=1_000_000, accuracy=0.975 if labels else None)
    pruned = pruned.model_copy(update={"notes": ("zeros do not make dense kernels faster",)})
    int8 = stage("quantize.int8", 1, file_bytes=280_000, accuracy=0.97 if labels else None)
    skipped = tuple(Skipped(layer=f"fc{i}", reason="no weight") for i in range(5))
    int8 = int8.model_copy(update={"skipped": skipped})
    asked = Constraint(metric=Metric.SIZE_BYTES, goal=Goal.MAX_RATIO, value=0.2)
    return Report(
        model="digits.onnx",
        model_sha256="0" * 64,
        recipe=named.NAMED["prune-int8"],
        seed=0,
        data=DataUse(train_samples=1347, eval_samples=450, split="given apart"),
        environment=Environment(
            modelpress="0.1.0",
            python="3.11",
            torch="2",
            onnx="1",
            onnxruntime="1.32.0",
            cpu="A Processor",
            cpu_flags=(),
            cores=2,
            device="cpu",
            sandbox="landlock-7+seccomp",
        ),
        stages=(baseline, pruned, int8) if complete else (baseline,),
        constraints=(judge(asked, 1_000_000, 280_000),) if complete else (),
        outcome=Outcome.BEST_EFFORT if complete else None,
        artifacts=(
            ArtifactInfo(name="model.onnx", format="onnx", size_bytes=280_000, sha256="0" * 64),
        ),
        verification=Verification(ok=True, samples=64, max_abs_difference=1e-7, tolerance=1e-5)
        if complete
        else None,
        complete=complete,
    )
