from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelpress.spec import order
from modelpress.spec.job import Limits
from modelpress.spec.progress import Progress
from modelpress.spec.report import Report
from modelpress.spec.state import FailureClass
from workers import attempt, sandbox

PRELUDE = Path(__file__).with_name("scripted.py").read_text()
RECIPE = {"steps": [{"kind": "prune.magnitude", "sparsity": 0.5}, {"kind": "quantize.int8"}]}
COMPRESS = {"task": "compress", "model": {"path": "input/model.onnx"}, "recipe": RECIPE, "seed": 7}

Run = Callable[..., attempt.Ended]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs an order with an engine that does what the script says."""

    def run_(script: str, *, asked: dict = COMPRESS, limits: Limits | None = None, **options):
        (tmp_path / order.INPUT).mkdir()
        (tmp_path / order.ORDER).write_text(json.dumps(asked))
        engine = tmp_path / order.INPUT / "engine.py"
        engine.write_text(f"{PRELUDE}\n\n{script}\n")
        return attempt.run(
            tmp_path,
            limits=limits or Limits(max_runtime_s=30),
            engine=(sys.executable, str(engine)),
            **options,
        )

    return run_


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
