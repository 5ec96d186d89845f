from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from tests.engine.measure import files
from workers.engine.errors import BadData, BadModel, Diverged, ExportMismatch, Unsupported
from workers.engine.measure import predict, quality

X = np.random.default_rng(0).normal(size=(100, 3))
W = np.eye(3)
LABELS = X.argmax(1).tolist()


def test_a_model_that_is_always_right_is_measured_so(tmp_path: Path) -> None:
    path = files.linear(tmp_path / "a.onnx", W)
    got, reference = quality.baseline(path, files.rows(X, LABELS), tmp_path / "ref", threads=1)
    assert (got.samples, got.accuracy, got.agreement) == (100, 1.0, 1.0)
    assert (got.max_abs_difference, got.relative_l2_difference) == (0.0, 0.0)
    assert got.class_accuracy == (1.0, 1.0, 1.0)
    assert isinstance(reference.outputs["y"], np.memmap)
    np.testing.assert_allclose(reference.outputs["y"], X, rtol=1e-6)


def test_an_exported_file_is_measured_against_the_uploaded_one(tmp_path: Path) -> None:
    original = files.linear(tmp_path / "a.onnx", W)
    changed = W + np.random.default_rng(1).normal(0, 0.5, (3, 3))
    exported = files.linear(tmp_path / "b.onnx", changed)
    samples = files.rows(X, LABELS)
    _, reference = quality.baseline(original, samples, tmp_path / "ref", threads=1)
    got = quality.measure(exported, samples, reference, threads=1)
    outputs, kept = X @ changed, X
    top = outputs.argmax(1)
    assert got.accuracy == pytest.approx(np.mean(top == LABELS))
    assert got.agreement == pytest.approx(np.mean(top == kept.argmax(1)))
    assert got.max_abs_difference == pytest.approx(np.abs(outputs - kept).max(), rel=1e-5)
    relative = np.linalg.norm(outputs - kept) / np.linalg.norm(kept)
    assert got.relative_l2_difference == pytest.approx(relative, rel=1e-5)
    by_class = [np.mean(top[np.array(LABELS) == label] == label) for label in range(3)]
    assert got.class_accuracy == pytest.approx(by_class)


@pytest.mark.parametrize("batch_bytes", [1, 36, 12 * 7, 1 << 20])
def test_the_figures_do_not_depend_on_the_batches(
    tmp_path: Path, batch_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = files.linear(tmp_path / "a.onnx", W)
    exported = files.linear(tmp_path / "b.onnx", W + np.diag([0.0, 2.0], 1))
    samples = files.rows(X, LABELS)
    _, reference = quality.baseline(original, samples, tmp_path / "one", threads=1)
    wanted = quality.measure(exported, samples, reference, threads=1)
    monkeypatch.setattr(predict, "BATCH_BYTES", batch_bytes)
    _, reference = quality.baseline(original, samples, tmp_path / "two", threads=1)
    got = quality.measure(exported, samples, reference, threads=1)
    assert wanted.accuracy is not None
    assert wanted.accuracy < 1
    sums = {"max_abs_difference", "relative_l2_difference"}
    assert got.model_dump(exclude=sums) == wanted.model_dump(exclude=sums)
    assert got.max_abs_difference == pytest.approx(wanted.max_abs_difference, rel=1e-6)
    assert got.relative_l2_difference == pytest.approx(wanted.relative_l2_difference, rel=1e-6)


def test_a_fixed_batch_is_filled_and_what_filled_it_is_not_counted(tmp_path: Path) -> None:
    path = files.linear(tmp_path / "a.onnx", W, batch=8)
    got, reference = quality.baseline(path, files.rows(X, LABELS), tmp_path / "ref", threads=1)
    assert (got.samples, got.accuracy) == (100, 1.0)
    assert len(reference.outputs["y"]) == 100


def test_a_fixed_batch_may_have_an_output_that_is_one_number(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["y"], name="n0"),
        helper.make_node("ReduceSum", ["x"], ["total"], name="n1", keepdims=0),
    ]
    shapes = {"y": [8, 3], "total": []}
    path = files.model(tmp_path / "a.onnx", nodes, {}, inputs={"x": [8, 3]}, outputs=shapes)
    got, reference = quality.baseline(path, files.rows(X), tmp_path / "ref", threads=1)
    assert (got.samples, set(reference.outputs)) == (100, {"y"})


def test_without_labels_there_is_agreement_and_no_accuracy(tmp_path: Path) -> None:
    path = files.linear(tmp_path / "a.onnx", W)
    got, _ = quality.baseline(path, files.rows(X), tmp_path / "ref", threads=1)
    assert (got.accuracy, got.agreement, got.class_accuracy) == (None, 1.0, ())


@pytest.mark.parametrize("end", ["", "Sigmoid"])
def test_a_single_score_tells_two_classes(tmp_path: Path, end: str) -> None:
    path = files.linear(tmp_path / "a.onnx", np.array([[1.0], [0.0], [0.0]]), end=end)
    labels = (X[:, 0] > 0).astype(int).tolist()
    got, _ = quality.baseline(path, files.rows(X, labels), tmp_path / "ref", threads=1)
    assert (got.accuracy, got.class_accuracy) == (1.0, (1.0, 1.0))


def test_a_class_without_samples_has_no_accuracy(tmp_path: Path) -> None:
    path = files.linear(tmp_path / "a.onnx", W)
    got, _ = quality.baseline(path, files.rows([[1, 0, 0]], [0]), tmp_path / "ref", threads=1)
    assert got.class_accuracy == (1.0, None, None)


def test_a_model_that_answers_no_classes_has_differences_only(tmp_path: Path) -> None:
    nodes = [helper.make_node("Unsqueeze", ["x", "axes"], ["y"], name="n")]
    path = files.model(
        tmp_path / "a.onnx",
        nodes,
        {"axes": np.array([2])},
        inputs={"x": ["n", 3]},
        outputs={"y": ["n", 3, 1]},
    )
    got, _ = quality.baseline(path, files.rows(X, LABELS), tmp_path / "ref", threads=1)
    assert (got.accuracy, got.agreement, got.max_abs_difference) == (None, None, 0.0)


def test_a_label_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    path = files.linear(tmp_path / "a.onnx", W)
    with pytest.raises(BadData, match="label 3, but the model's output has 3 classes"):
        quality.baseline(path, files.rows([[1, 0, 0]], [3]), tmp_path / "ref", threads=1)


def test_a_model_that_answers_nan_is_refused_by_sample(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sqrt", ["x"], ["y"], name="n")]
    path = files.model(
        tmp_path / "a.onnx", nodes, {}, inputs={"x": ["n", 3]}, outputs={"y": ["n", 3]}
    )
    samples = files.rows([[1, 1, 1], [1, -1, 1]])
    with pytest.raises(BadModel, match="NaN in output 'y' for eval sample 1"):
        quality.baseline(path, samples, tmp_path / "ref", threads=1)


def test_a_step_whose_result_answers_nan_has_failed(tmp_path: Path) -> None:
    def ending(name: str, kind: str) -> Path:
        nodes = [helper.make_node(kind, ["x"], ["y"], name="n")]
        where = tmp_path / f"{name}.onnx"
        return files.model(where, nodes, {}, inputs={"x": ["n", 3]}, outputs={"y": ["n", 3]})

    samples = files.rows([[1, 1, 1], [1, 1, 1], [1, -1, 1]])
    _, reference = quality.baseline(ending("a", "Abs"), samples, tmp_path / "ref", threads=1)
    with pytest.raises(Diverged, match="NaN in output 'y' for eval sample 2") as caught:
        quality.measure(ending("b", "Sqrt"), samples, reference, threads=1)
    assert caught.value.layer == "y"
    assert "learning_rate" in caught.value.hint


def test_infinities_that_agree_do_not_differ(tmp_path: Path) -> None:
    nodes = [helper.make_node("Log", ["x"], ["y"], name="n")]
    path = files.model(
        tmp_path / "a.onnx", nodes, {}, inputs={"x": ["n", 2]}, outputs={"y": ["n", 2]}
    )
    got, reference = quality.baseline(path, files.rows([[0, 1]]), tmp_path / "r", threads=1)
    assert got.max_abs_difference == 0.0
    other = quality.measure(path, files.rows([[1, 1]]), reference, threads=1)
    assert np.isfinite(other.max_abs_difference)
    assert other.max_abs_difference > 1e300


def test_an_output_whose_rows_are_no_samples_is_left_out(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["y"], name="n0"),
        helper.make_node("ReduceSum", ["x"], ["total"], name="n1", keepdims=0),
    ]
    shapes = {"y": ["n", 3], "total": []}
    path = files.model(tmp_path / "a.onnx", nodes, {}, inputs={"x": ["n", 3]}, outputs=shapes)
    _, reference = quality.baseline(path, files.rows(X), tmp_path / "ref", threads=1)
    assert set(reference.outputs) == {"y"}


def test_a_model_without_rows_for_samples_can_not_be_compared(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], name="n1", keepdims=0)]
    path = files.model(tmp_path / "a.onnx", nodes, {}, inputs={"x": ["n", 3]}, outputs={"y": []})
    with pytest.raises(Unsupported, match="one row for each sample"):
        quality.baseline(path, files.rows(X), tmp_path / "ref", threads=1)


def test_an_exported_file_with_another_output_is_a_mismatch(tmp_path: Path) -> None:
    original = files.linear(tmp_path / "a.onnx", W)
    exported = files.linear(tmp_path / "b.onnx", np.ones((3, 2)))
    samples = files.rows(X)
    _, reference = quality.baseline(original, samples, tmp_path / "ref", threads=1)
    with pytest.raises(ExportMismatch, match=r"of shape \[100, 2\], the uploaded model's is"):
        quality.measure(exported, samples, reference, threads=1)


def test_a_file_that_does_not_load_is_the_uploads_fault_or_ours(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.onnx", files.linear(tmp_path / "a.onnx", W)
    bad.write_bytes(b"\x08\x08\x12\x04junk")
    samples = files.rows(X)
    with pytest.raises(BadModel, match="ONNX Runtime can't load"):
        quality.baseline(bad, samples, tmp_path / "ref", threads=1)
    _, reference = quality.baseline(good, samples, tmp_path / "ref", threads=1)
    with pytest.raises(ExportMismatch, match="ONNX Runtime can't load"):
        quality.measure(bad, samples, reference, threads=1)


def test_a_model_that_fails_on_the_data_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "to"], ["y"], name="n")]
    path = files.model(
        tmp_path / "a.onnx",
        nodes,
        {"to": np.array([7, 3])},
        inputs={"x": ["n", 3]},
        outputs={"y": [7, 3]},
    )
    with pytest.raises(BadModel, match="ONNX Runtime can't run"):
        quality.baseline(path, files.rows(X), tmp_path / "ref", threads=1)


def test_progress_ends_at_one(tmp_path: Path) -> None:
    told: list[float] = []
    path = files.linear(tmp_path / "a.onnx", W)
    quality.baseline(path, files.rows(X), tmp_path / "ref", threads=1, report=told.append)
    assert told[-1] == 1.0
