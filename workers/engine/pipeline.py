"""The whole story of a job: from an uploaded model, data and a recipe to a measured report and a smaller model.

    order -> Graph -> baseline -> for each step: pass, verify, export, measure -> artifact and probes

`compress` leaves the job for a second, fresh process to verify (verification.py).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from modelpress.spec import order
from modelpress.spec.order import CompressOrder
from modelpress.spec.report import DataUse, Report, Stage
from modelpress.spec.sensitivity import Sensitivity
from modelpress.spec.step import Step
from workers.engine import advice, context, data, formats, others, outbox, passes, probing
from workers.engine.context import Context, Coverage
from workers.engine.errors import BadData, NothingChanged
from workers.engine.formats import inspection, torch_save
from workers.engine.gauge import Gauge, Performed
from workers.engine.graph import Graph, verify
from workers.engine.measure import alone, environment, shares

_MEASURING = 0.8
"""From this fraction of a step on it is measured."""
_EXPLAINING = 0.9
"""From this fraction on, layer by layer."""


def compress(jobdir: Path) -> Report:
    """Runs the recipe of JOBDIR/order.json on JOBDIR/input.

    Writes output/report.json after every stage; at the end output/artifacts/model.onnx and output/verify/.

    Raises:
        EngineError: the model, the data or the recipe can't be used, or a step failed.
    """
    job = _open(Path(jobdir))
    gauge, report = _baseline(job)
    before = graph = job.ctx.source
    files: tuple[Path, ...] = ()
    analyses: list[Sensitivity] = []
    for index, step in enumerate(job.asked.recipe.steps):
        before = graph
        try:
            graph, stage, coverage = _perform(job, gauge, graph, index, step, report.stages[-1])
        except NothingChanged as error:
            tried = (*report.advice, advice.of_failure(index, error))
            outbox.write_report(jobdir, report.model_copy(update={"advice": tried}))
            raise
        if coverage.sensitivity is not None:
            analyses.append(coverage.sensitivity)
        if not step.analyzes:
            files = tuple(coverage.files)
        job = replace(job, ctx=_known(job.ctx, step, coverage))
        report = _with_stage(report, stage)
        _finish_stage(job, report)
    _keep_artifacts(job, gauge, graph, files)
    _keep_analyses(job, analyses)
    probing.write(job.jobdir, graph, before, gauge)
    return report


@dataclass(frozen=True)
class _Job:
    """What stays the same from the first stage to the last."""

    jobdir: Path
    asked: CompressOrder
    ctx: Context
    use: DataUse | None
    teller: outbox.Teller


def _open(jobdir: Path) -> _Job:
    """Loads the model and opens the data.

    Raises:
        BadModel, Unsupported: the model can't be used.
        BadData: a dataset does not fit it, or the recipe needs samples, labels or other models that are missing.
    """
    outbox.clear(jobdir)
    asked = outbox.read_compress_order(jobdir)
    teller = outbox.Teller(stages=len(asked.recipe.steps) + 2)
    teller.start(0, "baseline", "loading the model and the data")
    device = context.prepare_torch(asked.device, asked.threads)
    source = formats.load(jobdir / asked.model.path)
    train, held, how = _open_data(jobdir, asked, source)
    ctx = Context(
        device=device,
        threads=asked.threads or context.cores(),
        seed=asked.seed,
        source=source,
        work=jobdir / order.WORK,
        models=others.Models({r: jobdir / f.path for r, f in asked.models.items()}, source),
        train=train,
        eval=held,
        sensitivity=_sensitivity(jobdir, asked),
        model_sha256=asked.model.sha256,
    )
    return _Job(jobdir, asked, ctx, _use(train, held, how), teller)


def _open_data(
    jobdir: Path, asked: CompressOrder, source: Graph
) -> tuple[data.Dataset | None, data.Dataset | None, str]:
    """The train and the eval split, where there are any, and how they were told apart."""
    inputs, wanted = inspection.inspect(source).inputs, asked.data
    train, held = (
        data.open(jobdir / file.path, inputs, wanted.images, jobdir / order.WORK) if file else None
        for file in (wanted.train, wanted.eval)
    )
    how = "an eval dataset of its own"
    if train is not None and held is None:
        train, held, how = data.split(train, wanted.eval_fraction, asked.seed)
    _check_needs(asked, train)
    return train, held, how


def _sensitivity(jobdir: Path, asked: CompressOrder) -> Sensitivity | None:
    """The table that came with the order.

    Raises:
        BadData: it is no table, or one of another model.
    """
    if asked.sensitivity is None:
        return None
    try:
        found = Sensitivity.model_validate_json((jobdir / asked.sensitivity.path).read_bytes())
    except ValidationError as e:
        raise BadData(
            f"'{asked.sensitivity.name}' is no table of sensitivities: {e.errors()[0]['msg']}",
            hint="give a file that analyze.sensitivity wrote",
        ) from e
    if problem := found.unlike(asked.model.sha256):
        raise BadData(problem, hint="measure this model with analyze.sensitivity")
    return found


def _check_needs(asked: CompressOrder, train: data.Dataset | None) -> None:
    has_labels = train is not None and train.labels is not None
    problems = asked.recipe.problems(
        has_data=train is not None, has_labels=has_labels, models=asked.models
    )
    if problems:
        raise BadData("; ".join(p.reason for p in problems), hint=problems[0].hint)


def _use(train: data.Dataset | None, held: data.Dataset | None, how: str) -> DataUse | None:
    if held is None:
        return None
    return DataUse(
        train_samples=train.samples if train is not None else 0,
        eval_samples=held.samples,
        split=how,
        preprocessing=held.preprocessing,
    )


def _baseline(job: _Job) -> tuple[Gauge, Report]:
    """Measures the uploaded file and begins the report.

    Raises:
        BadModel: ONNX Runtime can't run the file, or it answers NaN.
        BadData: a label is none of the model's classes.
        Unsupported: the engine computes the model differently from ONNX Runtime, or torch can't export it.
    """
    asked, ctx = job.asked, job.ctx
    original = job.jobdir / asked.model.path
    unmeasured = Gauge.open(
        original, ctx.source, ctx.eval, threads=ctx.threads, seed=asked.seed, work=ctx.work
    )
    probing.check_reproduces(original, ctx.source, unmeasured)
    if "pt2" in asked.formats:
        torch_save.export(
            ctx.source, probing.example(unmeasured)
        )  # fails now rather than at the end
    gauge, stage = unmeasured.baseline(ctx.source, job.teller.tell)
    ctx.outputs.update(gauge.reference.outputs)
    if ctx.train is not None:
        gauge.check_labels(ctx.train)
    report = Report(
        model=asked.model.name or asked.model.path,
        model_sha256=asked.model.sha256,
        recipe=asked.recipe,
        seed=asked.seed,
        data=job.use,
        environment=environment.describe(
            device=context.device_name(ctx.device), cores=context.cores(), sandbox=asked.sandbox
        ),
        stages=(stage,),
    )
    _finish_stage(job, report)
    return gauge, report


def _perform(
    job: _Job, gauge: Gauge, graph: Graph, index: int, step: Step, before: Stage
) -> tuple[Graph, Stage, Coverage]:
    """Applies a step to a copy of the graph, exports the result and measures the exported file.

    Answers what the step left beside the model, too.
    """
    job.teller.start(index + 1, step.kind, f"step {index + 1} of {len(job.asked.recipe.steps)}")
    started = time.monotonic()
    ctx = job.ctx.for_step(index, job.teller.part(0.0, _MEASURING))
    verify.verify(graph)
    result = passes.apply(graph.clone(), step, ctx)
    verify.verify(result)
    exported = ctx.work / f"step-{index}.onnx"
    formats.save(result, exported)
    seconds = time.monotonic() - started
    stage = gauge.measure(
        exported,
        result,
        Performed(step.kind, index, seconds, ctx.coverage, step.analyzes),
        before,
        job.teller.part(_MEASURING, _EXPLAINING),
    )
    if step.changes_model:
        changed = alone.Changed(
            ctx.coverage.prepared or graph,
            result,
            exported,
            [t.layer for t in stage.touched],
            ctx.coverage.networks,
        )
        stage = gauge.explain(stage, changed, job.teller.part(_EXPLAINING, 1.0))
    return result, stage, ctx.coverage


def _with_stage(report: Report, stage: Stage) -> Report:
    """The report with one stage more, and what follows from all of them."""
    longer = report.model_copy(update={"stages": (*report.stages, stage)})
    found = {"shares": tuple(shares.of(longer.stages)), "advice": advice.of(longer)}
    return longer.model_copy(update=found)


def _known(ctx: Context, step: Step, done: Coverage) -> Context:
    """What the next step knows: a table of sensitivities holds until a step changes the network."""
    if done.sensitivity is not None:
        return replace(ctx, sensitivity=done.sensitivity)
    if not step.changes_model:
        return ctx
    return replace(ctx, sensitivity=None, history=(*ctx.history, step.kind))


def _finish_stage(job: _Job, report: Report) -> None:
    """Writes the report, then tells that it holds one stage more."""
    outbox.write_report(job.jobdir, report)
    stage = report.stages[-1]
    job.teller.done(f"{stage.name}: {stage.size.file_bytes:,} bytes")


def _keep_artifacts(job: _Job, gauge: Gauge, graph: Graph, files: Iterable[Path]) -> None:
    """Writes the last graph once more, as the same graph gives the same bytes, and what the last step left beside it.

    Raises:
        Unsupported: torch can't export the graph, where that was asked for.
    """
    folder = job.jobdir / order.ARTIFACTS
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    formats.save(graph, folder / order.ONNX)
    if "pt2" in job.asked.formats:
        torch_save.save(graph, folder / order.PT2, probing.example(gauge))
    for path in files:
        shutil.copyfile(path, folder / path.name)


def _keep_analyses(job: _Job, found: Sequence[Sensitivity]) -> None:
    """Writes the tables of sensitivities beside the model: sensitivity.json, sensitivity-2.json, ..."""
    for number, table in enumerate(found, start=1):
        outbox.write(job.jobdir / order.ARTIFACTS / order.sensitivity_name(number), table)
