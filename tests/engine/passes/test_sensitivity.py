"""analyze.sensitivity: each figure against ONNX Runtime on a file with that one layer changed; what becomes of the table."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from modelpress.spec import order
from modelpress.spec.analyze import AnalyzeSensitivity
from modelpress.spec.prune import PruneChannels
from modelpress.spec.quantize import QuantizeBits
from modelpress.spec.sensitivity import METHODS, Method, Sensitivity
from modelpress.spec.state import Outcome
from tests.engine import jobs, nets
from workers.engine import formats, gauge, passes, pipeline, verification
from workers.engine.errors import BadData, Unsupported
from workers.engine.graph import match
from workers.engine.measure import cost
from workers.engine.passes.analyze import _methods

BITS = {"kind": "analyze.sensitivity", "methods": ["bits"], "amounts": {"bits": [2, 4, 8]}}
MIXED = {"kind": "quantize.bits", "mixed": {"average_bits": 6}}


def measure(name, tmp_path, *, labels=True, **options):
    """The step on a net; answers the model, its samples and the context."""
    model, graph = jobs.load(name, tmp_path)
    train = jobs.dataset_of(model, labels=labels)
    ctx = jobs.context_of(graph.clone(), tmp_path, train)
    passes.apply(graph, AnalyzeSensitivity(**options), ctx)
    return model, train, ctx


def answers(model, train):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(
        None, train.batch(range(train.samples))
    )[0]


def with_weight(model, name, change):
    """The model with another weight in the place of one."""
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    (weight,) = [w for w in changed.graph.initializer if w.name == name]
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight)), name))
    return changed


def smallest_zero(weight):
    pruned = weight.copy()
    pruned.flat[np.argsort(np.abs(weight), axis=None)[: weight.size * 4 // 5]] = 0
    return pruned


def of_rank_2(weight):
    u, s, v = np.linalg.svd(weight.reshape(len(weight), -1), full_matrices=False)
    return ((u[:, :2] * s[:2]) @ v[:2]).reshape(weight.shape).astype(np.float32)


def test_a_weight_whose_square_is_beyond_float32_is_measured(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    name = match.layers(graph)[0].weight
    weight = graph.weight(name).copy()
    weight[0] = 0
    weight[0].flat[0] = 1e38
    graph.set_weight(name, weight)
    ctx = jobs.context_of(graph.clone(), tmp_path, jobs.dataset_of(model))
    passes.apply(graph, AnalyzeSensitivity(methods=("channels",)), ctx)
    assert any(row.layer == name for row in ctx.coverage.sensitivity.rows)


def check_row(row, model, train, changed):
    wanted, found = answers(model, train), answers(changed, train)
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert row.error == pytest.approx(error, rel=1e-3)
    assert row.agreement == (found.argmax(1) == wanted.argmax(1)).mean()
    assert row.accuracy == (found.argmax(1) == train.labels).mean()


def test_every_method_of_the_spec_is_an_entry_here():
    assert set(METHODS) == set(get_args(Method)) == set(_methods.METHODS)


@pytest.mark.parametrize("number", [0, -1], ids=["convolution", "matrix"])
def test_pruned_layer_moves_outputs_as_onnx_runtime_says(tmp_path, number):
    options = {"methods": ("magnitude",), "amounts": {"magnitude": (0.8,)}}
    model, train, ctx = measure("plain_cnn", tmp_path, **options)
    row = ctx.coverage.sensitivity.rows[number]
    check_row(row, model, train, with_weight(model, row.layer, smallest_zero))
    size = next(w for w in model.graph.initializer if w.name == row.layer).dims
    kept = int(np.prod(size)) - int(np.prod(size)) * 4 // 5
    assert row.bytes_before == 4 * np.prod(size)
    assert row.bytes_after == 4 * kept + -(-np.prod(size) // 8)
    assert row.macs_before is None


def test_layer_of_low_rank_moves_outputs_as_onnx_runtime_says(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    name = next(w.name for w in model.graph.initializer if w.name.startswith("weight"))
    rows, columns = len(graph.weight(name)), graph.weight(name)[0].size
    share = 2 / min(rows, columns)
    model, train, ctx = measure(
        "plain_cnn", tmp_path, methods=("low_rank",), amounts={"low_rank": (share, 1)}
    )
    row, full = ctx.coverage.sensitivity.lines("low_rank")[name]
    check_row(row, model, train, with_weight(model, name, of_rank_2))
    assert row.bytes_after == 4 * 2 * (rows + columns)
    assert row.macs_after / row.macs_before == pytest.approx(row.bytes_after / row.bytes_before)
    assert full.error < 1e-5


def test_layer_in_few_bits_moves_outputs_as_the_step_does_alone(tmp_path):
    options = {"methods": ("bits",), "amounts": {"bits": (3,)}}
    model, train, ctx = measure("residual_cnn", tmp_path, **options)
    row = ctx.coverage.sensitivity.rows[2]
    _, graph = jobs.load("residual_cnn", tmp_path)
    others = tuple({r.layer for r in ctx.coverage.sensitivity.rows} - {row.layer})
    formats.save(
        passes.apply(graph, QuantizeBits(bits=3, exclude=others), ctx), tmp_path / "b.onnx"
    )
    check_row(row, model, train, onnx.load(tmp_path / "b.onnx"))
    assert f"-> {row.bytes_after:,} bytes" in ctx.coverage.touched[0].change


def test_layer_with_fewer_channels_is_the_one_that_prune_channels_makes(tmp_path):
    options = {"methods": ("channels",), "amounts": {"channels": (0.01, 0.5)}}
    model, train, ctx = measure("residual_cnn", tmp_path, **options)
    found = ctx.coverage.sensitivity
    row = found.rows[0]
    assert row.joined
    assert {r.amount for r in found.rows} == {0.5}
    assert any("0.01 of" in note for note in ctx.coverage.notes)
    _, graph = jobs.load("residual_cnn", tmp_path)
    shapes = {name: array.shape for name, array in train.batch([0]).items()}
    whole = cost.measure(graph, shapes).macs
    alone = PruneChannels(fraction=0.001, overrides=[{"layers": row.layer, "fraction": 0.5}])
    pruned = passes.apply(graph.clone(), alone, jobs.context_of(graph, tmp_path, None))
    formats.save(pruned, tmp_path / "p.onnx")
    check_row(row, model, train, onnx.load(tmp_path / "p.onnx"))
    assert whole - cost.measure(pruned, shapes).macs == row.macs_before - row.macs_after
    fewer = sum(graph.weight(n).nbytes - pruned.weight(n).nbytes for n in graph.parameters())
    assert fewer == row.bytes_before - row.bytes_after


def test_int8_rounds_inputs_too(tmp_path):
    options = {"methods": ("bits", "int8"), "amounts": {"bits": (8,)}, "group_size": None}
    _, _, ctx = measure("plain_cnn", tmp_path, **options)
    weights, both = (ctx.coverage.sensitivity.errors(m) for m in ("bits", "int8"))
    assert all(weights[name][8] < both[name][8] < 0.1 for name in weights)


def test_what_cannot_be_compressed_so_is_said(tmp_path):
    _, _, ctx = measure("depthwise_cnn", tmp_path, methods=("low_rank",))
    assert any("rank 1 in each group" in note for note in ctx.coverage.notes)
    names = [layer.name for layer in ctx.coverage.sensitivity.layers]
    _, _, ctx = measure("depthwise_cnn", tmp_path, methods=("bits",), exclude=(names[0],))
    assert ctx.coverage.skipped[0].reason == "excluded by the recipe"
    assert names[0] not in ctx.coverage.sensitivity.errors("bits")
    with pytest.raises(Unsupported, match="found no layer to measure"):
        measure("depthwise_cnn", tmp_path, exclude=("*",))


NET = """
agraph (float[N, 6] x) => ({outputs}) <float[6, 3] w> {{
    y = MatMul(x, w)
    top = ArgMax<axis = 1, keepdims = 0>(y)
    mean = ReduceMean<keepdims = 0>(y)
}}
"""


def analyze_text(outputs, tmp_path):
    model = jobs.text(NET.format(outputs=outputs))
    onnx.save(model, tmp_path / "net.onnx")
    graph = formats.load(tmp_path / "net.onnx")
    ctx = jobs.context_of(graph.clone(), tmp_path, jobs.dataset_of(model))
    passes.apply(graph, AnalyzeSensitivity(methods=("magnitude",)), ctx)
    return ctx.coverage.sensitivity


def test_only_floats_of_each_sample_are_compared(tmp_path):
    alone = analyze_text("float[N, 3] y", tmp_path)
    beside = analyze_text("int64[N] top, float mean, float[N, 3] y", tmp_path)
    assert beside.rows == alone.rows
    with pytest.raises(Unsupported, match="nothing to compare"):
        analyze_text("int64[N] top, float mean", tmp_path)


def test_curves_show_what_was_measured(tmp_path):
    options = {"methods": ("bits",), "amounts": {"bits": (4, 2)}, "samples": 20}
    _, _, ctx = measure("mlp", tmp_path, **options)
    found = ctx.coverage.sensitivity
    assert (found.samples, found.metric) == (20, "accuracy")
    first = ctx.coverage.curves[0]
    assert [(p.x, p.mean) for p in first.points] == [
        (r.amount, r.accuracy) for r in found.lines("bits")[first.name]
    ]
    _, _, ctx = measure("mlp", tmp_path, labels=False, **options)
    found = ctx.coverage.sensitivity
    assert (found.metric, found.accuracy, found.rows[0].accuracy) == ("agreement", None, None)
    assert ctx.coverage.curves[0].y == "agreement with the float network, bits"


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Makes a job directory with labelled data."""
    monkeypatch.setattr(gauge, "LATENCY_BUDGET_S", 0.05)

    def make(name, steps, **options):
        model = nets.residual_cnn(0)
        train = jobs.arrays_of(model, 120)
        return jobs.make(tmp_path / name, model, steps, train=train, **options)

    return make


def table_of(jobdir, name="sensitivity.json"):
    return Sensitivity.model_validate_json((jobdir / order.ARTIFACTS / name).read_bytes())


def notes(report):
    return " ".join(report.stages[-1].notes)


def test_table_is_an_artifact_and_the_next_step_uses_it(job):
    jobdir = job("both", [BITS, MIXED])
    report = pipeline.compress(jobdir)
    verification.verify_export(jobdir)
    assert "sensitivities were not measured but known" in notes(report)
    assert table_of(jobdir).layers
    report = type(report).model_validate_json((jobdir / order.REPORT).read_bytes())
    assert {a.name: a.format for a in report.artifacts} == {
        "model.onnx": "onnx",
        "sensitivity.json": "json",
    }


def test_known_table_leads_to_the_choice_that_measuring_leads_to(job):
    measured = pipeline.compress(job("measured", [MIXED])).stages[-1]
    known = pipeline.compress(job("known", [{**BITS, "samples": 96}, MIXED])).stages[-1]
    assert known.touched == measured.touched
    for mine, theirs in zip(known.curves, measured.curves, strict=True):
        assert [p.mean for p in mine.points] == pytest.approx([p.mean for p in theirs.points])


def test_table_that_lacks_a_width_is_measured_anew_and_said(job):
    few = {**BITS, "amounts": {"bits": [2, 4]}}
    said = notes(pipeline.compress(job("few", [few, MIXED])))
    assert "sensitivities were measured anew" in said
    assert "was not measured at 8 bits of a weight" in said


def test_table_holds_until_a_step_changes_the_network(job):
    prune = {"kind": "prune.magnitude", "sparsity": 0.5}
    jobdir = job("changed", [BITS, prune, BITS, MIXED])
    report = pipeline.compress(jobdir)
    assert table_of(jobdir).after == ()
    assert table_of(jobdir, "sensitivity-2.json").after == ("prune.magnitude",)
    assert "not measured but known" in notes(report)
    assert "known" not in notes(pipeline.compress(job("dropped", [BITS, prune, MIXED])))


def test_analysis_alone_leaves_the_model_and_is_judged_by_what_was_asked(job):
    jobdir = job("alone", [BITS])
    report = pipeline.compress(jobdir)
    verification.verify_export(jobdir)
    report = type(report).model_validate_json((jobdir / order.REPORT).read_bytes())
    assert report.outcome is Outcome.MET
    assert report.stages[1].quality == report.stages[0].quality
    assert not any("no faster" in n or "no smaller" in n for n in report.stages[1].notes)


def test_table_of_another_model_is_refused(job):
    jobdir = job("first", [BITS])
    pipeline.compress(jobdir)
    table = table_of(jobdir)
    for changed, said in (
        ({"model_sha256": "ab" * 32}, "those of the model with SHA-256 abababababab"),
        ({"after": ("prune.magnitude",)}, "after prune.magnitude had changed"),
    ):
        other = job(said[:5], [MIXED], sensitivity=order.FileRef(path="input/sensitivity.json"))
        text = table.model_copy(update=changed).model_dump_json()
        (other / "input/sensitivity.json").write_text(text)
        with pytest.raises(BadData, match=said):
            pipeline.compress(other)
    other = job("broken", [MIXED], sensitivity=order.FileRef(path="input/s.json", name="s.json"))
    (other / "input/s.json").write_text("{}")
    with pytest.raises(BadData, match=r"'s\.json' is no table of sensitivities"):
        pipeline.compress(other)
