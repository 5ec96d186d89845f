"""Why a report's figures are what they are: each layer alone, each step's share, and what to try next."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from modelpress.spec.advice import Advice
from modelpress.spec.report import Effect, LayerError, Report, Stage, StepShare

SHOWN_LAYERS = 8
_BAR = 20
"""Columns of a share of 100 %."""
_HALVES = "▏▎▍▌▋▊▉█"

_PUT = {
    "set": "in step {}",
    "instead": "instead of step {}",
    "before": "before step {}",
    "after": "after step {}",
    "remove": "without step {}",
}


def layers(stage: Stage) -> Iterator[Padding]:
    """What each layer that the step changed does alone, the worst first; nothing where none was measured."""
    measured = [layer for layer in stage.layers if layer.relative_l2_difference is not None]
    if stage.effect is not None and measured:
        measured.sort(key=lambda layer: -(layer.share or 0.0))
        together = f"{stage.effect.relative_l2_difference:.2%} all together"
        heading = f"• error of the outputs with one layer changed ({together}), {stage.effect.samples} samples:"
        yield _indented(Text(heading))
        yield _indented(_layers(stage.effect, measured[:SHOWN_LAYERS]))
    if len(measured) > SHOWN_LAYERS:
        yield _indented(Text(f"• {len(measured) - SHOWN_LAYERS} more in report.json"))
    for reason, count in Counter(layer.reason for layer in stage.layers if layer.reason).items():
        yield _indented(Text(f"• {count} layer{'s' if count > 1 else ''} {reason}"))


def _layers(effect: Effect, found: list[LayerError]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("share of the squared errors", no_wrap=True)
    has_labels = effect.accuracy_before is not None
    table.add_column("accuracy" if has_labels else "agreement", justify="right", no_wrap=True)
    for layer in found:
        share = layer.share or 0.0
        bar = Text.assemble((_bar(share), "yellow"), f" {share:.0%}")
        table.add_row(
            Text(layer.layer), f"{layer.relative_l2_difference:.2%}", bar, _answers(layer, effect)
        )
    return table


def _bar(share: float) -> str:
    """A bar of eighths of a column."""
    eighths = round(8 * _BAR * min(max(share, 0.0), 1.0))
    rest = _HALVES[eighths % 8 - 1] if eighths % 8 else ""
    return "█" * (eighths // 8) + rest


def _answers(layer: LayerError, effect: Effect) -> str:
    if layer.accuracy is not None and effect.accuracy_before is not None:
        return f"{100 * (layer.accuracy - effect.accuracy_before):+.2f} pt"
    return "-" if layer.agreement is None else f"{layer.agreement:.2%}"


def shares(report: Report) -> Iterator[RenderableType]:
    """What each step has of what was won and lost; nothing where one step has everything."""
    found = report.shares
    if len(found) < 2:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("each step's share", no_wrap=True)
    for name in ("accuracy lost", "bytes", "MACs", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for share in found:
        table.add_row(share.name, *_share_cells(share))
    yield table


def _share_cells(share: StepShare) -> Iterator[str]:
    was, now = share.accuracy_before, share.accuracy
    yield (
        "-"
        if was is None or now is None
        else _with(f"{100 * (was - now):.2f} pt", share.drop_share)
    )
    yield _with(f"x {1 / share.size_factor:.2f}", share.size_share)
    yield _with(f"x {1 / share.macs_factor:.2f}", share.macs_share)
    yield _with(f"x {1 / share.latency_factor:.2f}", share.latency_share)


def _with(value: str, share: float | None) -> str:
    return value if share is None else f"{value} ({round(100 * share)}%)"


def advice(report: Report) -> Iterator[RenderableType]:
    """What to try next, each with the JSON that does it."""
    if report.advice:
        yield Text("what to try next", style="bold")
    for one in report.advice:
        yield _indented(Text.assemble(f"• {one.text}", "\n  ", (_how(one), "dim")))


def _how(one: Advice) -> str:
    """Where it goes, and what."""
    where = _PUT[one.put].format(one.step + 1)
    if one.put == "set":
        return f"{where}: " + ", ".join(f'"{k}": {json.dumps(v)}' for k, v in one.fragment.items())
    return f"{where}: {json.dumps(one.fragment)}" if one.fragment else where


def _indented(shown: RenderableType) -> Padding:
    return Padding(shown, (0, 0, 0, 2))
