"""What an engine may leave behind, and every way it may lie."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from modelpress.spec import order, report, sensitivity
from modelpress.spec.constraint import Constraint, judge
from tests import actor
from tests.workers import reports
from workers import outputs
from workers.jobdir import HostileOutput

ASKED = order.CompressOrder.model_validate(reports.COMPRESS)


def read(jobdir: Path) -> tuple[outputs.Artifact, ...]:
    found = outputs.finished_report(jobdir, ASKED)
    return outputs.artifacts(jobdir, found, max_bytes=1 << 20)


def test_honest_report_is_believed(tmp_path: Path) -> None:
    reports.leave(tmp_path, reports.finished())
    (artifact,) = read(tmp_path)
    assert artifact.path.read_bytes() == reports.CONTENT
    assert (artifact.name, artifact.sha256) == ("model.onnx", reports.artifact().sha256)


def test_report_of_some_stages_is_believed_as_a_partial_one(tmp_path: Path) -> None:
    reports.leave(tmp_path, reports.finished(stages=(reports.stage(0),), complete=False))
    assert len(outputs.report(tmp_path, ASKED).stages) == 1
    with pytest.raises(HostileOutput, match="1 stages of 3"):
        read(tmp_path)


def stages(*indices: int) -> report.Report:
    return reports.finished(stages=tuple(map(reports.stage, indices)))


def text(old: str, new: str) -> str:
    """The honest report with something replaced in its text."""
    honest = reports.finished().model_dump_json()
    assert old in honest
    return honest.replace(old, new, 1)


def judged() -> report.Report:
    own = Constraint(metric="macs", goal="at_most", value=1)
    return reports.finished(constraints=(judge(own, 2, 1),))


def named(*names: str) -> report.Report:
    return reports.finished(artifacts=tuple(reports.artifact(name=name) for name in names))


def artifact(**changes: object) -> report.Report:
    return reports.finished(artifacts=(reports.artifact().model_copy(update=changes),))


LIES: dict[str, tuple[Callable[[], report.Report | str | bytes], str]] = {
    "is no text": (lambda: b"\xff\xfe", "malformed"),
    "is empty": (lambda: "", "malformed"),
    "never ends": (lambda: " " * (outputs.MAX_REPORT_BYTES + 1), "larger than"),
    "is nested without end": (lambda: "[" * 1_000_000, "malformed"),
    "lacks a field": (lambda: text('"seed"', '"sead"'), "malformed at 'seed'"),
    "holds no number": (lambda: text("0.25", "NaN"), "not finite|malformed"),
    "holds too large a number": (lambda: text("0.25", "1e999"), "not finite|malformed"),
    "holds a NUL": (lambda: reports.finished(model="a\0b"), "NUL"),
    "holds half a character": (lambda: text('"model.onnx"', r'"\ud800"'), "malformed"),
    "is about another recipe": (lambda: text("0.5", "0.6"), "another recipe"),
    "is about another seed": (lambda: reports.finished(seed=8), "seed is 8, not 7"),
    "lacks a stage": (lambda: stages(0, 1), "2 stages of 3"),
    "has a stage too many": (lambda: stages(0, 1, 2, 2), "stages are"),
    "has its stages in another order": (lambda: stages(0, 2, 1), "stages are"),
    "is not complete": (lambda: reports.finished(complete=False), "not complete"),
    "has no outcome": (lambda: reports.finished(outcome=None), "not complete"),
    "was not verified": (lambda: reports.finished(verification=None), "not verified"),
    "judges other constraints": (judged, "other constraints"),
    "names no artifact": (lambda: reports.finished(artifacts=()), "0 artifacts"),
    "names too many artifacts": (lambda: named(*map(str, range(17))), "17 artifacts"),
    "names an artifact twice": (lambda: named("model.onnx", "model.onnx"), "named twice"),
    "names an artifact that is missing": (lambda: named("other.onnx"), "missing"),
    "lies about a hash": (lambda: artifact(sha256="0" * 64), "SHA-256"),
    "lies about a size": (lambda: artifact(size_bytes=1), "11 bytes"),
    "points elsewhere": (lambda: named("../report.json"), "artifact name"),
    "points to the machine": (lambda: named("/etc/hostname"), "artifact name"),
    "points to the folder itself": (lambda: named("."), "artifact name"),
    "hides an artifact": (lambda: named(".profile"), "artifact name"),
    "names an artifact in two lines": (lambda: named("a\nb"), "artifact name"),
}


@pytest.mark.parametrize(("content", "reason"), LIES.values(), ids=LIES)
def test_report_is_refused_that(
    tmp_path: Path, content: Callable[[], report.Report | str | bytes], reason: str
) -> None:
    reports.leave(tmp_path, content())
    with pytest.raises(HostileOutput, match=reason):
        read(tmp_path)


def test_artifact_larger_than_the_job_may_hold_is_refused(tmp_path: Path) -> None:
    reports.leave(tmp_path, reports.finished())
    with pytest.raises(HostileOutput, match="larger than 5 bytes"):
        outputs.artifacts(tmp_path, reports.finished(), max_bytes=5)


def _moved(path: Path, to: Path) -> Path:
    path.rename(to)
    return to


TRICKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "report linked elsewhere": (
        lambda d: (d / order.REPORT).symlink_to(_moved(d / order.REPORT, d / "elsewhere")),
        "can't be opened",
    ),
    "report of two names": (
        lambda d: (d / order.REPORT).hardlink_to(_moved(d / order.REPORT, d / "elsewhere")),
        "has 2 names",
    ),
    "report without end": (
        lambda d: (d / order.REPORT).symlink_to(_moved(d / order.REPORT, d / "x") and "/dev/zero"),
        "can't be opened",
    ),
    "report that blocks its reader": (
        lambda d: os.mkfifo(_moved(d / order.REPORT, d / "x") and d / order.REPORT),
        "no regular file",
    ),
    "report that is a folder": (
        lambda d: (_moved(d / order.REPORT, d / "x") and d / order.REPORT).mkdir(),
        "no regular file",
    ),
    "folder linked elsewhere": (
        lambda d: (d / order.ARTIFACTS).symlink_to(_moved(d / order.ARTIFACTS, d / "elsewhere")),
        "can't be opened",
    ),
    "artifact linked elsewhere": (
        lambda d: (d / order.ARTIFACTS / "model.onnx").symlink_to(
            _moved(d / order.ARTIFACTS / "model.onnx", d / "elsewhere")
        ),
        "can't be opened",
    ),
}


@pytest.mark.parametrize(("trick", "reason"), TRICKS.values(), ids=TRICKS)
def test_nothing_is_read_through(
    tmp_path: Path, trick: Callable[[Path], object], reason: str
) -> None:
    reports.leave(tmp_path, reports.finished())
    read(tmp_path)
    trick(tmp_path)
    with pytest.raises(HostileOutput, match=reason):
        read(tmp_path)


def test_failure_in_the_form_of_the_spec_is_believed(tmp_path: Path) -> None:
    (tmp_path / order.OUTPUT).mkdir()
    said = {"class": "user_input", "code": "bad_data", "message": "labels", "blame": "service"}
    (tmp_path / order.FAILURE).write_text(json.dumps(said))
    assert outputs.failure(tmp_path).blame == "user"


@pytest.mark.parametrize(
    "said",
    [{}, {"class": "mine", "code": "x", "message": "x"}, {"class": "internal", "code": "x" * 65}],
)
def test_failure_in_another_form_is_refused(tmp_path: Path, said: dict[str, str]) -> None:
    (tmp_path / order.OUTPUT).mkdir()
    (tmp_path / order.FAILURE).write_text(json.dumps(said))
    with pytest.raises(HostileOutput, match="malformed"):
        outputs.failure(tmp_path)


def test_inspection_of_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / order.OUTPUT).mkdir()
    found = {"format": "npz", "samples": 3, "arrays": [], "labels": None}
    (tmp_path / order.INSPECTION).write_text(json.dumps(found))
    data = order.InspectOrder.model_validate(reports.INSPECT)
    assert outputs.inspection(tmp_path, data).samples == 3
    with pytest.raises(HostileOutput, match="malformed"):
        outputs.inspection(tmp_path, data.model_copy(update={"kind": "model"}))


def test_report_without_a_format_that_was_asked_for_is_refused(tmp_path: Path) -> None:
    asked = ASKED.model_copy(update={"formats": ("onnx", "pt2")})
    reports.leave(tmp_path, reports.finished())
    with pytest.raises(HostileOutput, match="formats"):
        outputs.finished_report(tmp_path, asked)


def test_converted_model_is_measured_and_must_be_there(tmp_path: Path) -> None:
    found = actor.MODEL.model_copy(update={"format": "pt2"})
    with pytest.raises(HostileOutput, match="missing"):
        outputs.converted(tmp_path, found, max_bytes=100)
    (tmp_path / order.OUTPUT).mkdir()
    (tmp_path / order.CONVERTED).write_bytes(reports.CONTENT)
    [made] = outputs.converted(tmp_path, found, max_bytes=100)
    assert (made.name, made.sha256) == ("model.onnx", reports.artifact().sha256)
    assert outputs.converted(tmp_path, actor.MODEL, max_bytes=100) == ()


ANALYZED = order.CompressOrder.model_validate(
    {
        **reports.COMPRESS,
        "model": {"path": "input/model.onnx", "sha256": "ab"},
        "recipe": {
            "steps": [
                {"kind": "analyze.sensitivity"},
                {"kind": "prune.magnitude", "sparsity": 0.5},
                {"kind": "analyze.sensitivity"},
            ]
        },
    }
)


def tables(jobdir: Path, *found: sensitivity.Sensitivity) -> tuple[sensitivity.Sensitivity, ...]:
    """What is read where an engine leaves these."""
    (jobdir / order.ARTIFACTS).mkdir(parents=True, exist_ok=True)
    names = [order.sensitivity_name(number + 1) for number in range(len(found))]
    for name, table in zip(names, found, strict=True):
        (jobdir / order.ARTIFACTS / name).write_text(table.model_dump_json())
    return outputs.sensitivities(jobdir, ANALYZED, named("model.onnx", *names))


def test_tables_of_the_model_as_it_was_uploaded_are_kept(tmp_path: Path) -> None:
    first = actor.table(ANALYZED)
    later = first.model_copy(update={"after": ("prune.magnitude",)})
    assert tables(tmp_path, first, later) == (first,)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_sha256": "cd"}, "about another model"),
        ({"after": ("prune.magnitude",)}, r"measured after \['prune.magnitude'\]"),
        ({"layers": ()}, "malformed"),
        ({"accuracy": 1.5}, "malformed"),
        ({"layers": (sensitivity.Layer(name="v", kind="Gemm", shape=(1,)),)}, "rows of no layer"),
    ],
)
def test_table_is_refused_that_lies(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    lie = actor.table(ANALYZED).model_copy(update=change)
    with pytest.raises(HostileOutput, match=reason):
        tables(tmp_path, lie, actor.table(ANALYZED))


def test_table_that_is_missing_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(HostileOutput, match=r"no artifact sensitivity-2\.json"):
        tables(tmp_path, actor.table(ANALYZED))
