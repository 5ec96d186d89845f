"""The whole story of a job: from an uploaded model, data and a recipe to a measured report and a smaller model.

    order -> Graph -> baseline -> for each step: pass, verify, export, measure -> artifact and probes

`compress` leaves the job for a second, fresh process to verify (verification.py).
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from modelpress.spec import order
from modelpress.spec.order import CompressOrder
from modelpress.spec.report import DataUse, Report
from modelpress.spec.step import Step
from workers.engine import context, data, formats, gauge, outbox, passes, probing
from workers.engine.context import Context
from workers.engine.errors import BadData
from workers.engine.formats import inspection
from workers.engine.gauge import Gauge
from workers.engine.graph import Graph, verify
from workers.engine.measure import environment

_MEASURING = 0.8
"""From this fraction of a step on it is measured."""


def compress(jobdir: Path) -> Report:
    """Runs the recipe of JOBDIR/order.json on JOBDIR/input.

    Writes output/report.json after every stage; at the end output/artifacts/model.onnx and output/verify/.

    Raises:
        EngineError: the model, the data or the recipe can't be used, or a step failed.
    """
    jobdir = Path(jobdir)
    outbox.clear(jobdir)
    asked = outbox.read_compress_order(jobdir)
    teller = outbox.Teller(stages=len(asked.recipe.steps) + 2)
    teller.start(0, "baseline", "loading the model")
    device = context.prepare_torch(asked.device, asked.threads)
    source = formats.load(jobdir / asked.model.path)
    train, held, use = _open_data(jobdir, asked, source)
    ctx = Context(
        device=device,
        threads=asked.threads or context.cores(),
        seed=asked.seed,
        source=source,
        work=jobdir / order.WORK,
        train=train,
        eval=held,
    )
    measure, report = _baseline(jobdir, asked, ctx, use, teller)
    before, graph = source, source
    for index, step in enumerate(asked.recipe.steps):
        teller.start(index + 1, step.kind, f"step {index + 1} of {len(asked.recipe.steps)}")
        before, started = graph, time.monotonic()
        step_ctx = ctx.for_step(index, teller.part(0.0, _MEASURING))
        graph = _apply(graph, step, step_ctx)
        exported = ctx.work / f"step-{index}.onnx"
        formats.save(graph, exported)
        seconds = time.monotonic() - started
        stage = measure.measure(
            exported,
            graph,
            index,
            step.kind,
            seconds,
            step_ctx.coverage,
            teller.part(_MEASURING, 1.0),
        )
        report = report.model_copy(update={"stages": (*report.stages, stage)})
        outbox.write_report(jobdir, report)
        teller.done(f"{step.kind}: {stage.size.file_bytes:,} bytes")
    _keep_artifact(jobdir, graph)
    probing.write(jobdir, graph, before, measure)
    return report


def _open_data(
    jobdir: Path, asked: CompressOrder, source: Graph
) -> tuple[data.Dataset | None, data.Dataset | None, DataUse | None]:
    """The train and the eval split, and how they were told apart.

    Raises:
        BadData: a file does not fit the model, or the recipe needs samples or labels that are missing.
    """
    inputs = inspection.inspect(source).inputs
    opened = [
        data.open(jobdir / file.path, inputs, asked.data.images, jobdir / order.WORK)
        if file is not None
        else None
        for file in (asked.data.train, asked.data.eval)
    ]
    train, held = opened
    description = "an eval dataset of its own"
    if train is not None and held is None:
        train, held, description = data.split(train, asked.data.eval_fraction, asked.seed)
    _check_needs(asked, train)
    if held is None:
        return None, None, None
    use = DataUse(
        train_samples=train.samples if train is not None else 0,
        eval_samples=held.samples,
        split=description,
        preprocessing=held.preprocessing,
    )
    return train, held, use


def _check_needs(asked: CompressOrder, train: data.Dataset | None) -> None:
    has_labels = train is not None and train.labels is not None
    problems = asked.recipe.problems(has_data=train is not None, has_labels=has_labels)
    if problems:
        raise BadData("; ".join(p.reason for p in problems), hint=problems[0].hint)


def _baseline(
    jobdir: Path, asked: CompressOrder, ctx: Context, use: DataUse | None, teller: outbox.Teller
) -> tuple[Gauge, Report]:
    """Measures the uploaded file and begins the report."""
    original = jobdir / asked.model.path
    unmeasured = gauge.make(
        original, ctx.source, ctx.eval, threads=ctx.threads, seed=asked.seed, work=ctx.work
    )
    probing.check_reproduces(original, ctx.source, unmeasured)
    measure, stage = unmeasured.baseline(ctx.source, teller.tell)
    if ctx.train is not None:
        measure.check_labels(ctx.train)
    report = Report(
        model=asked.model.name or asked.model.path,
        model_sha256=asked.model.sha256,
        recipe=asked.recipe,
        seed=asked.seed,
        data=use,
        environment=environment.describe(
            device=context.device_name(ctx.device), cores=context.cores(), sandbox=asked.sandbox
        ),
        stages=(stage,),
    )
    outbox.write_report(jobdir, report)
    teller.done(f"the uploaded model: {stage.size.file_bytes:,} bytes")
    return measure, report


def _apply(graph: Graph, step: Step, ctx: Context) -> Graph:
    """Runs the pass on a copy, between two checks that the graph is one."""
    verify.verify(graph)
    result = passes.apply(graph.clone(), step, ctx)
    verify.verify(result)
    return result


def _keep_artifact(jobdir: Path, graph: Graph) -> None:
    """Writes the last graph once more: the same graph gives the same bytes."""
    folder = jobdir / order.ARTIFACTS
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    formats.save(graph, folder / "model.onnx")
