from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from modelpress.spec import order
from modelpress.spec.constraint import Constraint, Goal, Metric
from modelpress.spec.progress import Progress
from modelpress.spec.report import Report
from modelpress.spec.state import Outcome
from tests.engine import jobs, nets
from workers.engine import formats, gauge, pipeline, probes, probing, verdict, verification
from workers.engine.errors import BadData, BadModel, ExportMismatch, NothingChanged, Unsupported

PRUNE = {"kind": "prune.magnitude", "sparsity": 0.5}
TUNED = {**PRUNE, "rounds": 2, "fine_tune": {"epochs": 1, "batch_size": 32}}
INT8 = {"kind": "quantize.int8"}
DYNAMIC = {"kind": "quantize.int8", "mode": "dynamic"}


@pytest.fixture(autouse=True)
def _short_timings(monkeypatch):
    """A few timed runs are enough where no test looks at the milliseconds."""
    monkeypatch.setattr(gauge, "LATENCY_BUDGET_S", 0.05)


def report_of(jobdir: Path) -> Report:
    return Report.model_validate_json((jobdir / order.REPORT).read_bytes())


def finished(jobdir: Path) -> Report:
    pipeline.compress(jobdir)
    verification.verify_export(jobdir)
    return report_of(jobdir)


@pytest.fixture
def digits(tmp_path):
    """A job directory for steps on a small net with labelled data."""

    def make(steps, **options):
        model = nets.plain_cnn(0)
        train = jobs.arrays_of(model, 160)
        return jobs.make(tmp_path / "job", model, steps, train=train, **options)

    return make


def test_a_recipe_runs_to_a_complete_verified_report(digits):
    report = finished(digits([TUNED, INT8]))
    assert [stage.name for stage in report.stages] == [
        "baseline",
        "prune.magnitude",
        "quantize.int8",
    ]
    assert [stage.step for stage in report.stages] == [None, 0, 1]
    assert report.complete
    assert report.verification.ok
    assert report.stages[0].quality.accuracy == 1.0
    assert report.stages[0].latency.ratio == 1.0
    assert report.stages[1].size.nonzero_parameters < 0.6 * report.stages[0].size.parameters
    assert report.stages[2].size.file_bytes < 0.6 * report.stages[0].size.file_bytes
    assert report.data.train_samples + report.data.eval_samples == 160
    assert report.outcome is not None


def test_the_artifact_is_the_file_that_was_measured(digits):
    jobdir = digits([PRUNE, INT8])
    report = finished(jobdir)
    artifact = jobdir / order.ARTIFACTS / "model.onnx"
    assert artifact.read_bytes() == (jobdir / "work/step-1.onnx").read_bytes()
    assert [a.name for a in report.artifacts] == ["model.onnx"]
    assert report.artifacts[0].size_bytes == artifact.stat().st_size
    assert report.artifacts[0].size_bytes == report.stages[-1].size.file_bytes


def test_the_baseline_is_measured_on_the_uploaded_file_itself(digits):
    jobdir = digits([PRUNE])
    report = pipeline.compress(jobdir)
    assert report.stages[0].size.file_bytes == (jobdir / "input/model.onnx").stat().st_size


def test_until_the_verification_the_report_is_not_complete(digits):
    jobdir = digits([PRUNE])
    report = pipeline.compress(jobdir)
    assert report == report_of(jobdir)
    assert (report.complete, report.verification, report.outcome) == (False, None, None)


def test_progress_tells_every_stage_in_order_and_never_goes_back(digits, capsys):
    finished(digits([TUNED, INT8]))
    said = [Progress.model_validate_json(line) for line in capsys.readouterr().out.splitlines()]
    marks = [(p.event, p.stage, p.name) for p in said if p.event != "progress"]
    names = ["baseline", "prune.magnitude", "quantize.int8", "verify"]
    assert marks == [
        (event, i, name)
        for i, name in enumerate(names)
        for event in ("stage_started", "stage_done")
    ]
    fractions = [p.fraction for p in said]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_each_stage_is_reported_before_the_next_begins(digits, monkeypatch):
    jobdir = digits([PRUNE, INT8])
    seen = []
    apply = pipeline.passes.apply
    monkeypatch.setattr(
        pipeline.passes,
        "apply",
        lambda *args: (seen.append(len(report_of(jobdir).stages)), apply(*args))[1],
    )
    pipeline.compress(jobdir)
    assert seen == [1, 2]


def test_a_step_that_fails_leaves_the_finished_stages(digits):
    jobdir = digits([PRUNE, {**PRUNE, "sparsity": 0.3}, INT8])
    with pytest.raises(NothingChanged):
        pipeline.compress(jobdir)
    assert [stage.name for stage in report_of(jobdir).stages] == ["baseline", "prune.magnitude"]


def test_without_data_agreement_is_measured_on_random_inputs_and_said(tmp_path):
    jobdir = jobs.make(tmp_path / "job", nets.residual_cnn(0), [PRUNE, DYNAMIC])
    report = finished(jobdir)
    assert report.data is None
    assert gauge.NO_DATA in report.stages[0].notes
    for stage in report.stages:
        assert stage.quality.accuracy is None
        assert stage.quality.agreement is not None
        assert stage.quality.samples == gauge.RANDOM_SAMPLES
    assert report.stages[0].quality.agreement == 1.0


def test_without_labels_agreement_is_measured_on_the_eval_split(tmp_path):
    model = nets.mlp(0)
    train = jobs.arrays_of(model, 100, labels=False)
    report = finished(jobs.make(tmp_path / "job", model, [INT8], train=train))
    assert gauge.NO_LABELS in report.stages[0].notes
    assert report.stages[-1].quality.accuracy is None
    assert report.stages[-1].quality.agreement > 0.5
    assert report.stages[-1].quality.samples == report.data.eval_samples == 20


def test_an_eval_dataset_is_used_whole_and_never_trained_on(tmp_path):
    model = nets.mlp(0)
    arrays = jobs.arrays_of(model, 100)
    held = {name: array[:30] for name, array in arrays.items()}
    train = {name: array[30:] for name, array in arrays.items()}
    report = finished(jobs.make(tmp_path / "job", model, [INT8], train=train, held=held))
    assert (report.data.train_samples, report.data.eval_samples) == (70, 30)
    assert report.data.split == "an eval dataset of its own"


def test_text_models_and_models_of_two_inputs_go_through(tmp_path):
    for name in ("text_transformer", "two_inputs"):
        model = nets.NETS[name](0)
        train = jobs.arrays_of(model, 60)
        report = finished(jobs.make(tmp_path / name, model, [PRUNE, INT8], train=train))
        assert report.complete


def test_a_fixed_batch_is_kept_and_measured(tmp_path):
    model = nets.plain_cnn(0)
    train = jobs.arrays_of(model, 50)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    report = finished(jobs.make(tmp_path / "job", model, [TUNED, INT8], train=train))
    assert report.stages[0].latency.batch == 4
    assert report.verification.samples == 4


def test_a_batch_that_the_graph_itself_fixes_is_filled_up(tmp_path):
    model = jobs.text("""
        net (float[4, 2, 8] x) => (float[4, 10] y) <float[16, 10] w, float[10] b>
        { s = Constant<value_ints = [4, 16]>()  r = Reshape(x, s)  y = Gemm(r, w, b) }
    """)
    train = {
        "x": np.random.default_rng(0).normal(size=(50, 2, 8)).astype(np.float32),
        "labels": np.arange(50) % 10,
    }
    report = finished(jobs.make(tmp_path / "job", model, [TUNED, INT8], train=train))
    assert report.complete


@pytest.mark.parametrize(
    ("steps", "labels", "reason"),
    [
        ([INT8], None, "needs samples"),
        ([TUNED], False, "needs labels"),
        ([DYNAMIC, PRUNE], True, "can't follow"),
    ],
)
def test_a_recipe_that_lacks_what_it_needs_is_the_users_fault(tmp_path, steps, labels, reason):
    model = nets.mlp(0)
    train = None if labels is None else jobs.arrays_of(model, 40, labels=labels)
    with pytest.raises(BadData, match=reason):
        pipeline.compress(jobs.make(tmp_path / "job", model, steps, train=train))


def test_labels_beyond_the_models_classes_are_refused_before_any_step(tmp_path):
    model = nets.mlp(0)
    train = jobs.arrays_of(model, 60)
    train["labels"][:] = 17
    jobdir = jobs.make(tmp_path / "job", model, [PRUNE], train=train)
    with pytest.raises(BadData, match="17"):
        pipeline.compress(jobdir)


def test_a_model_that_answers_nan_is_refused_at_the_baseline(tmp_path):
    model = nets.mlp(0)
    train = jobs.arrays_of(model, 60)
    weight = next(w for w in model.graph.initializer if w.name.startswith("bias"))
    weight.CopyFrom(
        onnx.numpy_helper.from_array(np.full(weight.dims, np.nan, np.float32), weight.name)
    )
    with pytest.raises(BadModel):
        pipeline.compress(jobs.make(tmp_path / "job", model, [PRUNE], train=train))


def test_a_model_that_the_engine_computes_differently_is_refused(tmp_path, monkeypatch):
    jobdir = jobs.make(tmp_path / "job", nets.mlp(0), [PRUNE])
    run = probing.execute.run
    monkeypatch.setattr(
        probing.execute, "run", lambda g, f: {n: a * 1.1 for n, a in run(g, f).items()}
    )
    with pytest.raises(Unsupported, match="differently"):
        pipeline.compress(jobdir)


def test_another_seed_gives_other_bytes_and_the_same_seed_the_same(tmp_path):
    def run(name, seed):
        model = nets.plain_cnn(0)
        train = jobs.arrays_of(model, 80)
        pipeline.compress(jobs.make(tmp_path / name, model, [TUNED, INT8], train=train, seed=seed))
        return (tmp_path / name / order.ARTIFACTS / "model.onnx").read_bytes()

    first, again, other = run("a", 1), run("b", 1), run("c", 2)
    assert first == again
    assert first != other


def test_a_second_run_in_the_same_directory_starts_anew(digits):
    jobdir = digits([PRUNE])
    finished(jobdir)
    pipeline.compress(jobdir)
    assert not report_of(jobdir).complete


def test_an_artifact_that_computes_something_else_fails_the_verification(digits):
    jobdir = digits([INT8])
    pipeline.compress(jobdir)
    graph = formats.load(jobdir / order.ARTIFACTS / "model.onnx")
    name = next(n for n in graph.initializers if n.endswith("_int8"))
    graph.set_weight(name, np.roll(graph.weight(name), 1, axis=0))
    formats.save(graph, jobdir / order.ARTIFACTS / "model.onnx")
    with pytest.raises(ExportMismatch, match="differ by"):
        verification.verify_export(jobdir)
    report = report_of(jobdir)
    assert not report.verification.ok
    assert not report.complete


def test_an_artifact_that_is_no_model_fails_the_verification(digits):
    jobdir = digits([PRUNE])
    pipeline.compress(jobdir)
    (jobdir / order.ARTIFACTS / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(ExportMismatch, match="can't load"):
        verification.verify_export(jobdir)


def test_outputs_beyond_float16_are_named_with_the_way_out(tmp_path):
    model = jobs.text("""
        net (float[batch, 8] x) => (float[batch, 4] logits) <float[8, 8] w, float[8, 4] v>
        { h = MatMul(x, w) g = Relu(h) logits = MatMul(g, v) }
    """)
    for weight in model.graph.initializer:
        weight.CopyFrom(
            onnx.numpy_helper.from_array(3e3 * onnx.numpy_helper.to_array(weight), weight.name)
        )
    halves = {"kind": "quantize.float16", "compute": "float16"}
    jobdir = jobs.make(tmp_path / "job", model, [halves], train=jobs.arrays_of(model, 64))
    with pytest.raises(ExportMismatch, match="not finite") as raised:
        finished(jobdir)
    assert "65,504" in raised.value.hint
    assert "leave compute out" in raised.value.hint


def test_the_verification_runs_two_batch_sizes(digits):
    jobdir = digits([DYNAMIC])
    pipeline.compress(jobdir)
    kept = probes.read(jobdir)
    assert [len(run.inputs["image"]) for run in kept.runs] == [16, 1]
    assert verification.check(jobdir, 1).samples == 17


def test_a_float_artifact_gets_no_int8_tolerance(digits):
    jobdir = digits([PRUNE])
    pipeline.compress(jobdir)
    kept = probes.read(jobdir)
    largest = max(np.abs(a).max() for run in kept.runs for a in run.outputs.values())
    assert kept.tolerance == pytest.approx(probing.FLOAT_TOLERANCE * largest)


def test_constraints_are_judged_on_the_last_stage(digits):
    asked = (
        Constraint(metric=Metric.ACCURACY, goal=Goal.MAX_DROP, value=1.0),
        Constraint(metric=Metric.SIZE_BYTES, goal=Goal.MAX_RATIO, value=0.6),
        Constraint(metric=Metric.SIZE_BYTES, goal=Goal.AT_MOST, value=10),
    )
    report = finished(digits([INT8], constraints=asked))
    assert [result.met for result in report.constraints] == [True, True, False]
    assert report.outcome is Outcome.BEST_EFFORT


def test_the_report_says_which_gains_did_not_come(digits):
    report = finished(digits([PRUNE, INT8]))
    pruned, quantized = report.stages[1:]
    assert any("made the file no smaller" in note for note in pruned.notes)
    assert not any("made the file no smaller" in note for note in quantized.notes)
    for stage, before in ((pruned, report.stages[0]), (quantized, pruned)):
        gained = stage.latency.ratio < verdict.FASTER_BELOW * before.latency.ratio
        assert gained != any("faster here" in n or "slower here" in n for n in stage.notes)


def test_an_upload_that_is_quantized_already_can_be_measured(tmp_path, digits):
    first = digits([INT8])
    pipeline.compress(first)
    model = onnx.load(first / order.ARTIFACTS / "model.onnx")
    arrays = jobs.arrays_of(nets.plain_cnn(0), 60)
    jobdir = jobs.make(tmp_path / "again", model, [PRUNE], train=arrays)
    with pytest.raises(NothingChanged, match="no weight"):
        pipeline.compress(jobdir)
    assert [stage.name for stage in report_of(jobdir).stages] == ["baseline"]


def test_outcomes():
    stage = json.loads(STAGE)
    base = Report.model_validate(
        {**json.loads(REPORT), "stages": [stage, {**stage, "name": "prune.magnitude", "step": 0}]}
    )

    def outcome(file_bytes, ratio, *constraints):
        last = base.stages[1].model_copy(
            update={
                "size": base.stages[1].size.model_copy(update={"file_bytes": file_bytes}),
                "latency": base.stages[1].latency.model_copy(update={"ratio": ratio}),
            }
        )
        return verdict.judge(
            base.model_copy(update={"stages": (base.stages[0], last)}), constraints
        ).outcome

    impossible = Constraint(metric=Metric.MACS, goal=Goal.AT_MOST, value=0)
    assert outcome(1000, 1.0) is Outcome.NOT_IMPROVED
    assert outcome(1000, 0.99) is Outcome.NOT_IMPROVED
    assert outcome(500, 1.5) is Outcome.MET
    assert outcome(1000, 0.5) is Outcome.MET
    assert outcome(500, 0.5, impossible) is Outcome.BEST_EFFORT
    assert outcome(1000, 1.0, impossible) is Outcome.NOT_IMPROVED


STAGE = """{"name": "baseline", "step": null, "seconds": 0, "quality": null,
 "size": {"file_bytes": 1000, "zipped_bytes": 900, "entropy_bytes": 900, "theoretical_bytes": 800,
          "parameters": 200, "nonzero_parameters": 200, "bits_per_parameter": 32},
 "latency": {"p50_ms": 1, "p90_ms": 1, "p99_ms": 1, "mean_ms": 1, "std_ms": 0, "min_ms": 1, "runs": 10, "warmup": 3,
             "batch": 1, "threads": 1, "device": "cpu", "original_p50_ms": 1, "ratio": 1},
 "cost": {"macs": 100, "macs_by_operator": {"Gemm": 100}}}"""
REPORT = """{"model": "m", "model_sha256": "", "recipe": {"steps": [{"kind": "prune.magnitude", "sparsity": 0.5}]},
 "seed": 0, "data": null, "environment": {"modelpress": "", "python": "", "torch": "", "onnx": "", "onnxruntime": "",
 "cpu": "", "cpu_flags": [], "cores": 1, "device": "cpu", "sandbox": "none"}}"""


def test_a_report_explains_each_step_layer_by_layer(digits):
    report = finished(digits([TUNED, INT8]))
    baseline, *steps = report.stages
    assert baseline.effect is None
    assert baseline.layers == ()
    for stage in steps:
        assert stage.effect is not None
        assert stage.effect.samples == report.data.eval_samples
        assert {layer.layer for layer in stage.layers} == {t.layer for t in stage.touched}
        assert all(layer.accuracy is not None for layer in stage.layers)
    assert [share.name for share in report.shares] == ["prune.magnitude", "quantize.int8"]
    assert report.shares[1].size_factor > 1
    assert sum(share.size_share for share in report.shares) == pytest.approx(1)


def test_a_step_that_only_packs_changes_no_layer(digits):
    report = finished(digits([INT8, {"kind": "code.entropy"}]))
    assert report.stages[1].layers
    assert report.stages[2].effect is None
    assert report.stages[2].layers == ()


def test_a_step_that_changed_nothing_leaves_its_advice(digits):
    jobdir = digits([TUNED, {**PRUNE, "sparsity": 0.1}])
    with pytest.raises(NothingChanged):
        pipeline.compress(jobdir)
    report = report_of(jobdir)
    assert [stage.name for stage in report.stages] == ["baseline", "prune.magnitude"]
    assert report.advice[-1].put == "remove"
    assert report.advice[-1].step == 1
    assert "zeroed no weight" in report.advice[-1].text
