from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.engine import nets
from tests.engine.measure import files
from workers.engine.errors import BadModel, ExportMismatch
from workers.engine.measure import latency


def large_and_small(folder: Path) -> tuple[Path, Path]:
    """The same signature, a hundred times the work."""
    wide = np.ones((16, 2048), np.float32)
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "a"], ["h"], name="n0"),
        onnx.helper.make_node("MatMul", ["h", "b"], ["i"], name="n1"),
        onnx.helper.make_node("MatMul", ["i", "c"], ["y"], name="n2"),
    ]
    weights = {"a": wide, "b": np.ones((2048, 2048), np.float32), "c": wide.T.copy()}
    shape = {"x": ["n", 16]}
    large = files.model(
        folder / "large.onnx", nodes, weights, inputs=shape, outputs={"y": ["n", 16]}
    )
    return large, files.linear(folder / "small.onnx", np.eye(16))


def test_a_smaller_model_is_faster_beside_the_larger(tmp_path: Path) -> None:
    large, small = large_and_small(tmp_path)
    feeds = {"x": np.ones((2, 16), np.float32)}
    got = latency.measure(small, large, feeds, threads=1, budget_s=0.3)
    assert got.ratio < 0.5
    assert got.ratio == pytest.approx(got.p50_ms / got.original_p50_ms)
    assert got.min_ms <= got.p50_ms <= got.p90_ms <= got.p99_ms
    assert got.runs >= latency.MIN_RUNS
    assert (got.batch, got.threads, got.device) == (2, 1, "cpu")
    assert got.warmup > 0


def test_the_uploaded_model_beside_itself_has_ratio_one(tmp_path: Path) -> None:
    _, small = large_and_small(tmp_path)
    feeds = {"x": np.ones((1, 16), np.float32)}
    got = latency.measure(small, small, feeds, threads=1, budget_s=0.05)
    assert got.ratio == 1.0
    assert got.original_p50_ms == got.p50_ms


def test_a_budget_of_nothing_still_gives_some_runs(tmp_path: Path) -> None:
    large, small = large_and_small(tmp_path)
    feeds = {"x": np.ones((1, 16), np.float32)}
    assert latency.measure(small, large, feeds, threads=1, budget_s=0).runs == latency.MIN_RUNS


def test_models_take_turns_in_both_orders() -> None:
    turns: list[str] = []
    latency.alternate((lambda: turns.append("a"), lambda: turns.append("b")), 0)
    assert "".join(turns).startswith("abbaabba")
    assert turns.count("a") == turns.count("b") == latency.MIN_RUNS


def test_a_file_that_can_not_run_is_the_uploads_fault_or_ours(tmp_path: Path) -> None:
    _, small = large_and_small(tmp_path)
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"junk")
    feeds = {"x": np.ones((1, 16), np.float32)}
    with pytest.raises(BadModel):
        latency.measure(small, bad, feeds, threads=1)
    with pytest.raises(ExportMismatch):
        latency.measure(bad, small, feeds, threads=1)


def test_real_samples_are_repeated_to_fill_a_batch() -> None:
    feeds = latency.sample_feeds(files.rows([[1], [2], [3]]), 5)
    assert feeds["x"][:, 0].tolist() == [1, 2, 3, 1, 2]


@pytest.mark.parametrize("net", ["two_inputs", "text_transformer"])
def test_random_inputs_run_and_repeat(tmp_path: Path, net: str) -> None:
    model = nets.NETS[net](0)
    onnx.save(model, tmp_path / "a.onnx")
    like = nets.feeds(model, batch=2)
    shapes = {name: array.shape for name, array in like.items()}
    dtypes = {name: array.dtype.name for name, array in like.items()}
    feeds = latency.random_feeds(shapes, dtypes, 1)
    again = latency.random_feeds(shapes, dtypes, 1)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)
    got = latency.measure(tmp_path / "a.onnx", tmp_path / "a.onnx", feeds, threads=2, budget_s=0)
    assert (got.batch, got.threads) == (2, 2)
