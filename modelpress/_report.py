"""A report as people read it: a table of stages, then what they should know about each."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from modelpress import _curves, _explained
from modelpress.spec import recipe as recipes
from modelpress.spec.constraint import ConstraintResult
from modelpress.spec.report import (
    Control,
    KernelLatency,
    Latency,
    Quality,
    Report,
    Size,
    Stage,
    Verification,
)
from modelpress.spec.state import Outcome

WIDTH = 100
SHOWN_SKIPPED = 3

_OUTCOMES = {
    Outcome.MET: ("green", "met: everything asked for holds"),
    Outcome.BEST_EFFORT: ("yellow", "best effort: a constraint does not hold, the result is kept"),
    Outcome.NOT_IMPROVED: ("yellow", "not improved: neither the file nor the latency got smaller"),
}


def render(report: Report) -> RenderableType:
    """The report for a rich console."""
    parts: list[RenderableType] = [_table(report), _caption(report)]
    for stage in report.stages:
        parts += _about(stage)
    parts += _explained.shares(report)
    parts += [_constraint(result) for result in report.constraints]
    parts += _ending(report)
    parts += _explained.advice(report)
    return Group(*parts)


def as_text(report: Report) -> str:
    """The report without colours, 100 columns wide."""
    console = Console(file=io.StringIO(), width=WIDTH, record=True, color_system=None)
    console.print(render(report))
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"


def as_svg(report: Report, *, title: str) -> str:
    """The report as a picture that refers to nothing outside itself."""
    console = Console(file=io.StringIO(), width=WIDTH, record=True, force_terminal=True)
    console.print(render(report))
    svg = console.export_svg(title=title, unique_id="report")
    return re.sub(r"@font-face\s*{.*?}", "", svg, flags=re.DOTALL).replace(
        "Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace"
    )


def _table(report: Report) -> Table:
    quality = _quality_name(report)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("stage", no_wrap=True)
    for name in (quality, "bytes", "zipped", "p50-p90, ms", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in report.stages:
        table.add_row(*_row(stage, report.stages[0], quality))
        if stage.latency_packed is not None:
            table.add_row(*_kernel_row(stage.latency_packed))
        for control in stage.controls:
            table.add_row(*_control_row(control, report.stages[0], quality))
    return table


def _row(stage: Stage, original: Stage, quality: str) -> list[Text]:
    changed = stage is not original
    change = _quality_change(stage.quality, original.quality, quality) if changed else ""
    ratio = f"x {stage.latency.ratio:.2f}" if changed else ""
    return [
        Text(stage.name, style="bold" if changed else ""),
        _cell(_quality(stage.quality, quality), change),
        _count_cell(stage.size.file_bytes, original.size.file_bytes, changed),
        _count_cell(stage.size.zipped_bytes, original.size.zipped_bytes, changed),
        _cell(_latency(stage.latency), ratio),
        _count_cell(stage.cost.macs, original.cost.macs, changed),
    ]


def _kernel_row(found: KernelLatency) -> list[Text]:
    """The file beside the model that runs through kernels: timed in turn with the model's, at the fastest tenth."""
    faster = f"x {found.ratio:.2f} of model.onnx"
    return [Text(f"  {found.file}"), *[Text("")] * 3, _cell(f"{found.p10_ms:.4f}", faster)]


def _control_row(control: Control, original: Stage, quality: str) -> list[Text]:
    """A network of the stage's shape: only how it was trained and what came of it is new."""
    change = _quality_change(control.quality, original.quality, quality)
    return [
        Text(f"  {control.name}, {_count(control.epochs, 'epoch')}"),
        _cell(_quality(control.quality, quality), change),
    ]


def _cell(value: str, change: str) -> Text:
    """A figure, and below it how it compares with the original's."""
    return Text(value) if not change else Text.assemble(value, "\n", (change, "dim"))


def _count_cell(value: int, original: int, changed: bool) -> Text:
    return _cell(f"{value:,}", f"x {value / original:.2f}" if changed and original else "")


def _latency(latency: Latency) -> str:
    digits = 4 if latency.p50_ms < 0.1 else 3 if latency.p50_ms < 10 else 1
    return f"{latency.p50_ms:.{digits}f}-{latency.p90_ms:.{digits}f}"


def _quality_name(report: Report) -> str:
    measured = [stage.quality for stage in report.stages if stage.quality]
    return "accuracy" if any(q.accuracy is not None for q in measured) else "agreement"


def _quality(measured: Quality | None, name: str) -> str:
    value = measured and getattr(measured, name)
    return "-" if value is None else f"{value:.2%}"


def _quality_change(measured: Quality | None, original: Quality | None, name: str) -> str:
    if name != "accuracy" or not (measured and original):
        return ""
    now, before = measured.accuracy, original.accuracy
    return "" if now is None or before is None else f"{100 * (now - before):+.2f} pt"


def _caption(report: Report) -> Text:
    """How the figures were taken."""
    lines = []
    if report.stages:
        latency = report.stages[-1].latency
        lines.append(
            f"latency: median and 90th percentile of {latency.runs} runs after {latency.warmup} of warm-up, "
            f"batch {latency.batch}, {_count(latency.threads, 'thread')}, {latency.device}, "
            "timed in turn with the original"
        )
    env = report.environment
    lines.append(f"measured by ONNX Runtime {env.onnxruntime} on {env.cpu}, sandbox {env.sandbox}")
    if report.data is not None:
        data = report.data
        lines.append(
            f"data: {data.train_samples:,} samples to learn from, {data.eval_samples:,} to measure on "
            f"({data.split})"
        )
    return Text("\n".join(lines) + "\n", style="dim")


def _about(stage: Stage) -> list[RenderableType]:
    """What a stage changed, left alone and noted; nothing for a baseline without notes."""
    lines = [_bullet(note) for note in stage.notes]
    lines += [_bullet(text) for text in _weights(stage.size)]
    lines += [_bullet(f"left alone: {s.layer} ({s.reason})") for s in stage.skipped[:SHOWN_SKIPPED]]
    hidden = len(stage.skipped) - SHOWN_SKIPPED
    if hidden > 0:
        lines.append(_bullet(f"left alone: {hidden} more, see report.json"))
    lines += [_bullet(f"{c.name}: {c.note}") for c in stage.controls if c.note]
    lines += _explained.layers(stage)
    lines += _curves.tables(stage.curves)
    if stage.step is None and not lines:
        return []
    counts = f"{_count(len(stage.touched), 'layer')} changed, {len(stage.skipped)} left alone"
    if stage.name in recipes.STEPS and recipes.STEPS[stage.name].analyzes:
        counts = f"nothing changed, {len(stage.skipped)} not measured"
    detail = "" if stage.step is None else f": {counts}, {stage.seconds:.1f} s"
    return [Text.assemble((stage.name, "bold"), detail), *lines]


def _weights(size: Size) -> Iterator[str]:
    """What a packed file weighs, what for, and what bounds it."""
    if size.coded_bytes is None:
        return
    for name, parts in (("model.onnx", size.file_parts), ("model.mpk", size.coded_parts)):
        if parts is not None:
            found = {k.removesuffix("_bytes"): n for k, n in parts.model_dump().items() if n}
            told = ", ".join(f"{part} {count:,}" for part, count in found.items())
            yield f"bytes of {name}: {sum(found.values()):,} = {told}"
    yield (
        f"beside it: zipped {size.zipped_bytes:,}, order-0 entropy {size.entropy_bytes:,}, "
        f"non-zeros at their stored bits {size.theoretical_bytes:,}"
    )


def _bullet(text: str) -> Padding:
    return Padding(Text(f"• {text}"), (0, 0, 0, 2))


def _constraint(result: ConstraintResult) -> Text:
    asked = result.constraint
    measured = "not measured" if result.final is None else f"measured {result.final:g}"
    if result.original is not None:
        measured += f", originally {result.original:g}"
    return Text.assemble(
        ("✓ " if result.met else "✗ ", "green" if result.met else "red"),
        f"{asked.metric} {asked.goal} {asked.value:g}: {measured}",
    )


def _ending(report: Report) -> list[RenderableType]:
    lines: list[RenderableType] = []
    if report.verification is not None:
        checked = report.verification
        lines.append(
            Text(
                f"{'verified' if checked.ok else 'NOT VERIFIED'}: loaded afresh by ONNX Runtime, "
                f"{_count(checked.samples, 'sample')} differ by at most "
                f"{checked.max_abs_difference:.2g} (allowed {checked.tolerance:.2g})"
                f"{' ' + checked.message if checked.message else ''}",
                style="" if checked.ok else "red",
            )
        )
        lines.extend(_torch(report, checked))
        lines.extend(_unpacked(report, checked))
    if report.outcome is not None:
        colour, words = _OUTCOMES[report.outcome]
        lines.append(Text.assemble("outcome ", (words, f"bold {colour}")))
    if not report.complete:
        lines.append(Text("partial: the job has not finished these stages", style="yellow"))
    return lines


def _torch(report: Report, checked: Verification) -> Iterator[RenderableType]:
    """What became of the same network as a file of torch's."""
    for artifact in report.artifacts:
        if artifact.format == "pt2" and checked.pt2_max_abs_difference is not None:
            yield Text(
                f"{artifact.name}: {artifact.size_bytes:,} bytes, run by torch it differs from model.onnx "
                f"by at most {checked.pt2_max_abs_difference:.2g}"
            )


def _unpacked(report: Report, checked: Verification) -> Iterator[RenderableType]:
    """What a packed artifact gave."""
    for artifact in report.artifacts:
        if artifact.format == "mpk" and checked.unpack_seconds is not None:
            yield Text(
                f"{artifact.name}: {artifact.size_bytes:,} bytes, unpacked in a fresh process to model.onnx, byte for byte, "
                f"in {checked.unpack_seconds:.2g} s: every figure of model.onnx is its own"
            )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
