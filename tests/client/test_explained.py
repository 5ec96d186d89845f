"""What the report says of layers, shares and what to try next."""

from __future__ import annotations

from typing import Any

from modelpress import _report
from modelpress.spec.advice import Advice
from modelpress.spec.report import Effect, LayerError, Report, StepShare
from tests.client import reports


def layer(name: str, error: float, share: float, accuracy: float | None = 0.98) -> LayerError:
    return LayerError(
        layer=name,
        elements=10,
        relative_l2_difference=error,
        share=share,
        accuracy=accuracy,
        agreement=0.995,
    )


def with_layers(*layers: LayerError, labels: bool = True) -> list[str]:
    report = reports.report(labels=labels)
    before = 0.98 if labels else None
    effect = Effect(samples=256, accuracy_before=before, relative_l2_difference=0.25)
    stage = report.stages[1].model_copy(update={"layers": layers, "effect": effect})
    stages = (report.stages[0], stage, *report.stages[2:])
    return _report.as_text(report.model_copy(update={"stages": stages})).splitlines()


def rows(lines: list[str], *starts: str) -> list[list[str]]:
    return [line.split() for line in lines if line.split()[:1] and line.split()[0] in starts]


def test_layers_are_bars_the_worst_first():
    lines = with_layers(layer("fc1", 0.1, 0.25, 0.985), layer("fc2", 0.2, 0.75, 0.96))
    assert any("one layer changed (25.00% all together), 256 samples" in line for line in lines)
    assert rows(lines, "fc1", "fc2") == [
        ["fc2", "20.00%", "█" * 15, "75%", "-2.00", "pt"],
        ["fc1", "10.00%", "█" * 5, "25%", "+0.50", "pt"],
    ]


def test_without_labels_agreement_stands_beside_a_layer():
    lines = with_layers(layer("fc1", 0.1, 1.0, None), labels=False)
    assert rows(lines, "fc1") == [["fc1", "10.00%", "█" * 20, "100%", "99.50%"]]


def test_a_bar_has_eighths_of_a_column():
    [row] = rows(with_layers(layer("fc1", 0.1, 0.03)), "fc1")
    assert row[2:4] == ["▋", "3%"]


def test_many_layers_are_counted_not_listed():
    lines = with_layers(*(layer(f"fc{n}", 0.1, 0.1) for n in range(10)))
    assert len([line for line in lines if " fc" in line and "█" in line]) == 8
    assert "  • 2 more in report.json" in lines


def test_layers_that_were_not_measured_are_counted_by_reason():
    unmeasured = (
        LayerError(layer=f"fc{n}", elements=1, reason="not measured alone: x") for n in "ab"
    )
    lines = with_layers(*unmeasured)
    assert "  • 2 layers not measured alone: x" in lines
    assert not any("one layer changed" in line for line in lines)


def share(step: int, **changes: Any) -> StepShare:
    figures = {"size_factor": 2.0, "macs_factor": 1.0, "latency_factor": 1.25}
    return StepShare(step=step, name=f"step.{step}", **{**figures, **changes})


def shown(**changes: Any) -> list[str]:
    return _report.as_text(reports.report().model_copy(update=changes)).splitlines()


def test_shares_of_steps_are_a_table():
    first = share(0, accuracy_before=0.98, accuracy=0.975, drop_share=0.25, size_share=0.5)
    lines = shown(shares=(first, share(1, size_share=0.5, latency_share=1.0)))
    assert rows(lines, "step.0", "step.1") == [
        ["step.0", "0.50", "pt", "(25%)", "x", "0.50", "(50%)", "x", "1.00", "x", "0.80"],
        ["step.1", "-", "x", "0.50", "(50%)", "x", "1.00", "x", "0.80", "(100%)"],
    ]


def test_one_step_has_everything_and_needs_no_table():
    assert not any("share" in line for line in shown(shares=(share(0),)))


def test_advice_names_the_step_and_the_json():
    advice = (
        Advice(step=0, text="more", put="set", fragment={"exclude": ["fc*"], "rounds": 2}),
        Advice(step=1, text="smaller", put="after", fragment={"kind": "code.entropy"}),
        Advice(step=1, text="useless", put="remove"),
    )
    lines = [line.strip() for line in shown(advice=advice)]
    at = lines.index("what to try next")
    assert lines[at + 1 : at + 7] == [
        "• more",
        'in step 1: "exclude": ["fc*"], "rounds": 2',
        "• smaller",
        'after step 2: {"kind": "code.entropy"}',
        "• useless",
        "without step 2",
    ]


def test_what_a_report_says_survives_being_written():
    advice = (Advice(step=0, text="more", put="set", fragment={"exclude": ["fc*"]}),)
    report = reports.report().model_copy(update={"advice": advice, "shares": (share(0),)})
    assert Report.model_validate_json(report.model_dump_json()) == report
