"""What steps could do to a model, before there is a job."""

from __future__ import annotations

import importlib
import json
import signal
import time
from types import ModuleType

import onnx
import pytest

from modelpress.spec import order
from modelpress.spec.inspection import Capability, ModelInspection
from modelpress.spec.prune import PruneChannels, PruneMagnitude
from modelpress.spec.recipe import STEPS
from tests.engine import jobs, nets
from workers.engine import capabilities, formats, inspection, passes
from workers.engine.errors import NothingChanged
from workers.engine.passes import _lookahead

ASKED = "prune.magnitude"


def survey(net, tmp_path) -> dict[str, Capability]:
    model = net if isinstance(net, onnx.ModelProto) else nets.NETS[net](0)
    onnx.save(model, tmp_path / "net.onnx")
    return capabilities.survey(formats.load(tmp_path / "net.onnx"), tmp_path)


def step(found: dict[str, Capability], kind: str):
    return found[kind.split(".")[0]].steps[kind]


def names(groups) -> set[str]:
    return {name for group in groups for name in group.names}


@pytest.fixture
def instead(monkeypatch):
    """Puts another `survey` in the place of a pass's own."""

    def put(look) -> None:
        module = importlib.import_module(f"{passes.__name__}.{ASKED}")
        monkeypatch.setattr(module, "survey", look)

    return put


def test_every_family_answers_and_every_step_that_exists(tmp_path):
    found = survey("plain_cnn", tmp_path)
    assert tuple(found) == capabilities.FAMILIES
    assert {kind for family in found.values() for kind in family.steps} == set(STEPS)
    assert not found["dynamic"].ok
    assert "no step of family 'dynamic' yet" in found["dynamic"].reason


@pytest.mark.parametrize("kind", STEPS)
def test_every_pass_can_tell(kind):
    module: ModuleType = importlib.import_module(f"{passes.__name__}.{kind}")
    assert callable(module.survey)


@pytest.mark.parametrize("net", nets.NETS)
def test_what_could_be_zeroed_is_what_pruning_zeroes(net, tmp_path):
    told = step(survey(net, tmp_path), "prune.magnitude")
    _, graph = jobs.load(net, tmp_path)
    ctx = jobs.context_of(graph, tmp_path, None)
    passes.apply(graph.clone(), PruneMagnitude(sparsity=0.5, scope="layer"), ctx)
    assert names(told.can) == {t.layer for t in ctx.coverage.touched}
    assert names(told.cannot) == {s.layer for s in ctx.coverage.skipped}


@pytest.mark.parametrize("net", nets.NETS)
def test_layers_that_keep_their_channels_are_those_that_pruning_keeps(net, tmp_path):
    told = step(survey(net, tmp_path), "prune.channels")
    _, graph = jobs.load(net, tmp_path)
    ctx = jobs.context_of(graph, tmp_path, None)
    pruned = passes.apply(graph.clone(), PruneChannels(fraction=0.5), ctx)
    before, after = graph.parameters(), pruned.parameters()
    listed = {name for entry in names(told.can) for name in entry.split(", ")}
    narrower = {n for n, w in after.items() if w.shape != before[n].shape}
    assert listed <= narrower
    assert not listed & names(told.cannot)
    assert all(group.what for group in told.cannot)


def test_integers_and_floats_are_told_apart_as_quantization_does(tmp_path):
    told = step(survey("residual_cnn", tmp_path), "quantize.int8")
    model, graph = jobs.load("residual_cnn", tmp_path)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    passes.apply(graph.clone(), STEPS["quantize.int8"](samples=16), ctx)
    assert names(told.can) == {t.layer for t in ctx.coverage.touched}
    assert names(told.cannot) == {s.layer for s in ctx.coverage.skipped}


def test_a_model_without_weights_can_do_nothing_and_says_why(tmp_path):
    model = jobs.text("net (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    found = survey(model, tmp_path)
    assert found["prune"].ok is False
    assert "no weight of a convolution or matrix product" in found["prune"].reason
    assert "no layer to quantize" in step(found, "quantize.int8").reason


def test_a_free_axis_leaves_it_to_a_job_with_data(tmp_path):
    model = jobs.text(
        "net (float[N, 3, height, width] x) => (float[N, 4, h, w] y) <float[4, 3, 3, 3] w> { y = Conv(x, w) }"
    )
    found = survey(model, tmp_path)
    assert step(found, "prune.magnitude").ok
    for kind in ("prune.channels", "quantize.int8"):
        assert step(found, kind).ok is None
        assert "'height'" in step(found, kind).reason
        assert "a job with data can tell" in step(found, kind).reason
    assert found["prune"].ok
    assert found["quantize"].ok
    assert step(found, "quantize.cluster").ok


def test_a_network_too_large_to_follow_is_left_to_a_job(tmp_path, monkeypatch):
    monkeypatch.setattr(_lookahead, "MAX_ELEMENTS", 1000)
    told = step(survey("plain_cnn", tmp_path), "prune.channels")
    assert told.ok is None
    assert "follows 1,000" in told.reason


def test_a_pass_that_takes_too_long_is_stopped(tmp_path, monkeypatch, instead):
    def forever(graph, ctx):
        ctx.skipped("fc", "is wide")
        while True:
            try:
                time.sleep(60)
            except Exception:
                continue

    instead(forever)
    monkeypatch.setattr(capabilities, "LIMIT_S", 0.05)
    before = signal.getsignal(signal.SIGALRM)
    told = step(survey("mlp", tmp_path), ASKED)
    assert told.ok is None
    assert told.reason.startswith("not determined within 0.05 s")
    assert names(told.cannot) == {"fc"}
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("error", "ok"), [(NothingChanged("no"), False), (ZeroDivisionError(), None)]
)
def test_an_error_is_an_answer_and_no_reason_to_reject_the_model(tmp_path, instead, error, ok):
    def failing(graph, ctx):
        raise error

    instead(failing)
    told = step(survey("mlp", tmp_path), ASKED)
    assert told.ok is ok
    assert told.reason == ("no" if ok is False else "not determined: ZeroDivisionError")


def test_long_lists_are_cut_and_counted(tmp_path, instead):
    def wordy(graph, ctx):
        for index in range(40):
            ctx.touched(f"layer{index}", "its weights can be zeroed")
            ctx.skipped(f"table{index}" * 100, f"reason {index}")

    instead(wordy)
    told = step(survey("mlp", tmp_path), ASKED)
    [group] = told.can
    assert (len(group.names), group.count) == (capabilities.MAX_NAMES, 40)
    assert len(told.cannot) == capabilities.MAX_GROUPS + 1
    assert told.cannot[-1].what == "of 24 other kinds"
    assert sum(group.count for group in told.cannot) == 40
    assert max(map(len, names(told.cannot))) == capabilities.MAX_TEXT


def test_the_model_is_left_as_it_is(tmp_path):
    _, graph = jobs.load("residual_cnn", tmp_path)
    before = graph.model.graph.num_nodes(), {n: graph.weight(n).shape for n in graph.initializers}
    capabilities.survey(graph, tmp_path)
    after = graph.model.graph.num_nodes(), {n: graph.weight(n).shape for n in graph.initializers}
    assert after == before


def test_inspection_holds_them(tmp_path):
    (tmp_path / "input").mkdir()
    onnx.save(nets.plain_cnn(), tmp_path / "input/net.onnx")
    asked = order.InspectOrder(kind="model", file=order.FileRef(path="input/net.onnx"))
    (tmp_path / order.ORDER).write_text(asked.model_dump_json())
    inspection.inspect(tmp_path)
    found = json.loads((tmp_path / order.INSPECTION).read_text())
    assert found["capabilities"]["prune"]["steps"]["prune.channels"]["ok"] is True


def test_inspections_from_before_there_were_capabilities_still_load():
    stored = {
        "format": "onnx",
        "opset": 17,
        "producer": "",
        "inputs": [],
        "outputs": [],
        "parameters": 1,
        "macs": None,
        "operators": {},
    }
    assert ModelInspection.model_validate(stored).capabilities == {}
