from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelpress.spec import order
from modelpress.spec.job import Limits
from modelpress.spec.progress import Progress
from modelpress.spec.report import Report
from modelpress.spec.state import FailureClass
from tests.workers import reports
from workers import attempt, sandbox
from workers.sandbox import supervise

PRELUDE = Path(__file__).with_name("scripted.py").read_text()
Run = Callable[..., attempt.Ended]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs an order with an engine that does what the script says."""

    def run_(
        script: str, *, asked: dict = reports.COMPRESS, limits: Limits | None = None, **options
    ):
        (tmp_path / order.INPUT).mkdir()
        (tmp_path / order.ORDER).write_text(json.dumps(asked))
        honest = reports.finished().model_dump_json()
        (tmp_path / order.INPUT / "report.json").write_text(honest)
        engine = tmp_path / order.INPUT / "engine.py"
        engine.write_text(f"{PRELUDE}\n\n{script}\n")
        return attempt.run(
            tmp_path,
            limits=limits or Limits(max_runtime_s=30),
            engine=(sys.executable, str(engine)),
            **options,
        )

    return run_


def only_in(task: str, script: str) -> str:
    """An engine that is honest but for one of its children."""
    return f"if TASK == {task!r}:\n    {script}\nelse:\n    as_told()"


def why(ended: attempt.Ended) -> tuple[str, FailureClass, str]:
    assert ended.failure is not None, ended.log_tail
    return ended.how, ended.failure.class_, ended.failure.code


# what goes well


def test_honest_engine_succeeds_with_its_report_and_artifact(run: Run) -> None:
    heard: list[Progress] = []
    stages: list[Report] = []
    ended = run("as_told()", on_progress=heard.append, on_stage=stages.append)
    assert ended.how == "succeeded", (ended.failure, ended.log_tail)
    assert ended.failure is None
    assert [a.name for a in ended.artifacts] == ["model.onnx"]
    assert ended.artifacts[0].path.read_bytes() == b"small model"
    assert len(stages[-1].stages) == 3
    assert [h.event for h in heard].count("stage_done") == 4
    assert heard[-1].fraction == 1
    assert ended.sandbox == sandbox.level()


def test_inspection_succeeds_with_what_was_found(run: Run) -> None:
    found = {"format": "npz", "samples": 3, "arrays": [], "labels": None}
    ended = run(f"write('inspection.json', {found})", asked=reports.INSPECT)
    assert ended.how == "succeeded", (ended.failure, ended.log_tail)
    assert ended.inspection is not None
    assert ended.inspection.samples == 3


def test_verification_is_a_process_of_its_own(run: Run) -> None:
    script = "import os\nsys.stderr.write(f'{TASK} {os.getpid()}\\n')\nas_told()"
    ended = run(script)
    first, second = (line.split() for line in ended.log_tail.splitlines())
    assert (first[0], second[0]) == ("compress", "verify")
    assert first[1] != second[1]


# what the engine says of itself


def test_failure_of_the_engine_keeps_its_class_and_words(run: Run) -> None:
    failure = {"class": "user_input", "code": "bad_data", "message": "labels", "stage": "baseline"}
    ended = run(f"fail(**{failure})")
    assert why(ended) == ("failed", FailureClass.USER_INPUT, "bad_data")
    assert ended.failure.message == "labels"
    assert ended.failure.blame == "user"


def test_failure_in_the_verification_is_heard(run: Run) -> None:
    failure = {"class": "internal", "code": "export_mismatch", "message": "differs"}
    ended = run(only_in("verify", f"say(3, 0.9, 'stage_started'); fail(**{failure})"))
    assert why(ended) == ("failed", FailureClass.INTERNAL, "export_mismatch")
    assert ended.failure.stage == "verify"


def test_report_of_a_job_that_fails_later_is_kept(run: Run) -> None:
    script = """
write("report.json", partial(1))
say(0, 0.2, "stage_done")
say(1, 0.3, "stage_started")
raise SystemError("broken")
"""
    stages: list[Report] = []
    ended = run(script, on_stage=stages.append)
    assert why(ended) == ("failed", FailureClass.INTERNAL, "crashed")
    assert ended.failure.stage == "steps/0"
    assert "SystemError: broken" in ended.failure.message
    assert len(stages[0].stages) == 1
    assert ended.report == stages[0]


def test_lines_that_are_no_progress_are_log(run: Run) -> None:
    script = """
as_told()
if TASK == "verify":
    sys.exit()
sys.stdout.write('{"event": "progress"}\\nnot json\\n')
say(0, 0.5, stages=17)
say(0, 0.5, name="verify")
say(0, 1.5)
say(0, 0.5, message="x" * 501)
say(1, 0.5, message="two\\x1b[31m colours")
"""
    heard: list[Progress] = []
    ended = run(script, on_progress=heard.append)
    assert ended.how == "succeeded"
    assert len(ended.log_tail.splitlines()) == 6
    assert {h.name for h in heard} == {*reports.NAMES, "verify"}


def test_progress_never_falls_and_never_floods(run: Run) -> None:
    script = """
say(1, 0.9)
for i in range(2000):
    say(1, 0.1, "stage_started")
    say(1, 0.1)
as_told()
"""
    heard: list[Progress] = []
    assert run(script, on_progress=heard.append).how == "succeeded"
    assert [h.fraction for h in heard] == sorted(h.fraction for h in heard)
    assert len(heard) < 20


# how a child ends, explained


@pytest.mark.parametrize(
    ("script", "limits", "expected"),
    [
        (
            "import time; time.sleep(20)",
            {"max_runtime_s": 1},
            ("expired", FailureClass.DEADLINE, "runtime_limit"),
        ),
        (
            "import mmap\nx = [mmap.mmap(-1, 1 << 26) for _ in range(8)]\nfor m in x: m.write(bytes(1 << 26))\nimport time; time.sleep(20)",
            {"max_memory_bytes": 256 << 20},
            ("failed", FailureClass.RESOURCE, "memory_limit"),
        ),
        (
            "for i in range(99): write(f'{i}', 'x' * (1 << 22))\nimport time; time.sleep(20)",
            {"max_disk_bytes": 32 << 20},
            ("failed", FailureClass.RESOURCE, "disk_limit"),
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            {},
            ("failed", FailureClass.TRANSIENT, "killed"),
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            {},
            ("failed", FailureClass.INTERNAL, "crashed"),
        ),
        (
            "import os; os.kill(os.getpid(), 40)",
            {},
            ("failed", FailureClass.INTERNAL, "crashed"),
        ),
        (
            "import os; sys.stderr.write('std::bad_alloc'); sys.stderr.flush(); os.abort()",
            {},
            ("failed", FailureClass.RESOURCE, "memory_limit"),
        ),
        ("sys.exit(97)", {}, ("failed", FailureClass.INTERNAL, "sandbox_refused")),
        ("sys.exit(3)", {}, ("failed", FailureClass.INTERNAL, "crashed")),
        ("sys.exit(10)", {}, ("failed", FailureClass.INTERNAL, "bad_output")),
    ],
)
def test_end_of_a_child_is_explained(run: Run, script: str, limits: dict, expected: tuple) -> None:
    ended = run(script, limits=Limits(**{"max_runtime_s": 20, **limits}))
    assert why(ended) == expected
    assert ended.failure.hint
    for name, value in limits.items():
        assert f"limits.{name}" in ended.failure.hint
        assert f"{value:,}" in ended.failure.hint


def test_both_children_share_the_time_of_the_job(run: Run) -> None:
    """Each alone would end in time."""
    script = "import time; as_told(); time.sleep(1.2)"
    ended = run(script, limits=Limits(max_runtime_s=2))
    assert why(ended) == ("expired", FailureClass.DEADLINE, "runtime_limit")
    assert len(ended.report.stages) == 3


@pytest.mark.parametrize("stop", ["cancelled", "drained", "fenced"])
def test_stop_is_told_as_it_was_asked(run: Run, stop: sandbox.Stop) -> None:
    heard: list[Progress] = []
    script = "say(0, 0.1)\nimport time; time.sleep(20)"
    ended = run(script, on_progress=heard.append, should_stop=lambda: stop if heard else None)
    assert (ended.how, ended.failure) == (stop, None)
    assert ended.seconds < 10


# the engine says that all is well, but it is not; see test_outputs for each way to lie


def test_engine_that_says_nothing_has_failed(run: Run) -> None:
    assert why(run("pass")) == ("failed", FailureClass.INTERNAL, "bad_output")


def test_engine_that_lies_about_its_artifact_has_failed(run: Run) -> None:
    script = "as_told(); write('artifacts/model.onnx', 'larger model')"
    ended = run(script)
    assert why(ended) == ("failed", FailureClass.INTERNAL, "bad_output")
    assert "12 bytes" in ended.failure.message
    assert ended.artifacts == ()
    assert ended.report is not None


def test_engine_that_never_verified_has_failed(run: Run) -> None:
    ended = run(only_in("verify", "pass"))
    assert why(ended) == ("failed", FailureClass.INTERNAL, "bad_output")
    assert "not complete" in ended.failure.message


# without a fence children can start processes of their own


@pytest.fixture
def unfenced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOW_UNSANDBOXED", "1")
    nothing = sandbox.Kernel(landlock=0, seccomp=False)
    monkeypatch.setattr(supervise, "probe", lambda: nothing)


@pytest.mark.usefixtures("unfenced")
def test_processes_that_a_child_leaves_behind_are_ended(run: Run) -> None:
    script = "import subprocess; p = subprocess.Popen(['sleep', '60']); sys.stderr.write(f'{p.pid}\\n'); as_told()"
    started = time.monotonic()
    ended = run(script)
    assert ended.how == "succeeded"
    assert time.monotonic() - started < 20
    for pid in map(int, ended.log_tail.split()):
        _wait_until_gone(pid)


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError(f"process {pid} is still there")
