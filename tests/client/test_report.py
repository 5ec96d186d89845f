from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from modelpress import _report
from tests.client import reports

GOLDEN = Path(__file__).with_name("report.txt")


def test_report_reads_as_agreed() -> None:
    assert _report.as_text(reports.report()) == GOLDEN.read_text("utf-8")


def test_without_labels_agreement_stands_where_accuracy_would() -> None:
    text = _report.as_text(reports.report(labels=False))
    assert "agreement" in text
    assert "accuracy" not in text
    assert "99.00%" in text


def test_partial_report_says_that_it_is_one() -> None:
    text = _report.as_text(reports.report(complete=False))
    assert "baseline" in text
    assert "partial" in text


def test_report_without_stages_is_shown_too() -> None:
    empty = reports.report(complete=False).model_copy(update={"stages": ()})
    assert "partial" in _report.as_text(empty)


def test_what_a_model_calls_its_layers_is_not_markup() -> None:
    report = reports.report()
    stage = report.stages[1].model_copy(update={"notes": ("[red]layer[/red] [/] \\",)})
    text = _report.as_text(report.model_copy(update={"stages": (report.stages[0], stage)}))
    assert "[red]layer[/red] [/] \\" in text


def test_picture_is_xml_that_loads_nothing() -> None:
    svg = _report.as_svg(reports.report(), title="a <report>")
    ElementTree.fromstring(svg)
    assert "url(http" not in svg
    assert "@import" not in svg
    assert "prune.magnitude" in svg


def test_picture_of_the_same_report_is_the_same() -> None:
    assert _report.as_svg(reports.report(), title="t") == _report.as_svg(
        reports.report(), title="t"
    )


def with_pruned(**changes: object) -> str:
    report = reports.report()
    pruned = report.stages[1].model_copy(update=changes)
    return _report.as_text(report.model_copy(update={"stages": (report.stages[0], pruned)}))


def test_controls_stand_below_their_stage() -> None:
    lines = with_pruned(controls=reports.controls()).splitlines()
    [at] = [i for i, line in enumerate(lines) if line.lstrip().startswith("scratch_e, 1 epoch")]
    assert lines[at - 2].startswith(" prune.magnitude")
    assert [line.split() for line in lines[at : at + 4]] == [
        ["scratch_e,", "1", "epoch", "96.00%"],
        ["-2.00", "pt"],
        ["scratch_b,", "4", "epochs", "98.50%"],
        ["+0.50", "pt"],
    ]
    assert "  • scratch_b: E is 1" in lines


def test_curves_are_a_table_with_a_column_for_each() -> None:
    lines = with_pruned(curves=reports.curves()).splitlines()
    [at] = [i for i, line in enumerate(lines) if "accuracy by fraction of weights kept" in line]
    assert [line.split() for line in lines[at + 1 : at + 8] if line.strip(" ─")] == [
        ["fraction", "ticket", "random_reinit"],
        ["100.00%", "97.00%", "-"],
        ["96.00%", "to", "98.00%"],
        ["20.00%", "98.00%", "95.10%"],
        ["97.50%", "to", "98.50%"],
    ]


def test_bytes_of_a_packed_file_are_told_by_what_they_are_for() -> None:
    text = " ".join(_report.as_text(reports.packed(reports.report())).split())
    told = (
        "bytes of model.onnx: 280,000 = weights 200,000, codebooks 50,000, biases 20,000, headers 10,000",
        "bytes of model.mpk: 144,000 = weights 60,000, codebooks 50,000, tables 4,000, biases 20,000, headers 10,000",
        "beside it: zipped 140,000, order-0 entropy 140,000, non-zeros at their stored bits 140,000",
        "model.mpk: 144,000 bytes, unpacked in a fresh process to model.onnx, byte for byte, in 0.012 s",
    )
    for line in told:
        assert line in text


def test_a_model_that_is_not_packed_says_nothing_of_it() -> None:
    text = _report.as_text(reports.report())
    assert "model.mpk" not in text
    assert "order-0" not in text


def test_a_packed_file_that_nobody_unpacked_is_not_called_so() -> None:
    report = reports.packed(reports.report())
    unchecked = report.verification.model_copy(update={"unpack_seconds": None})
    text = _report.as_text(report.model_copy(update={"verification": unchecked}))
    assert "bytes of model.mpk" in text
    assert "unpacked in a fresh process" not in text
