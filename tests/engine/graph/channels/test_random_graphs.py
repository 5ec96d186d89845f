"""Whatever network is drawn and whatever channels go: the result is exact, valid, trainable, and can be pruned again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine import nets
from tests.engine.graph.channels import oracle, random_nets
from workers.engine import formats
from workers.engine.graph import Graph, channels, execute, shapes, verify
from workers.engine.graph.channels.plan import Plan, Removed

SETTINGS = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def drawn(blocks: dict) -> st.SearchStrategy[list[tuple[str, int]]]:
    block = st.tuples(st.sampled_from(sorted(blocks)), st.integers(0, 999))
    return st.lists(block, min_size=1, max_size=7)


@settings(SETTINGS, max_examples=30)
@given(drawn(random_nets.IMAGE_BLOCKS), st.integers(0, 99))
def test_any_image_network_is_pruned_right(tmp_path, blocks, seed):
    _check(random_nets.image_net(blocks), seed, tmp_path, {})


@pytest.mark.parametrize("attention", ["heads", "width", "both"])
@settings(SETTINGS, max_examples=10)
@given(drawn(random_nets.TOKEN_BLOCKS), st.integers(0, 99))
def test_any_token_network_is_pruned_right(tmp_path, attention, blocks, seed):
    _check(random_nets.token_net(blocks), seed, tmp_path, {"attention": attention})


def _check(model: onnx.ModelProto, seed: int, tmp_path: Path, choices: dict) -> None:
    onnx.save(model, tmp_path / "net.onnx")
    graph = formats.load(tmp_path / "net.onnx")
    for round_ in range(2):
        _prune(graph, seed + round_, nets.feeds(model, 3, seed=1), choices)
        _check_file(graph, model, tmp_path)
    _check_training(graph, nets.feeds(model, 3, seed=2))


def _prune(graph: Graph, seed: int, feeds: dict[str, np.ndarray], choices: dict) -> None:
    sizes = shapes.example_shapes(graph, 1)
    plan = channels.plan.make(graph, sizes, **choices)
    removed = _some(plan, np.random.default_rng(seed))
    absent = oracle.absent(graph, plan, removed, feeds)
    zeroed = oracle.zeroed(graph, plan, removed, feeds)
    channels.surgery.remove(graph, plan, removed, sizes)
    verify.verify(graph)
    assert all(0 not in weight.shape for weight in graph.parameters().values())
    sliced = execute.run(graph, feeds)["logits"]
    _assert_close(sliced, absent["logits"])
    if not plan.narrowed(removed):
        _assert_close(sliced, zeroed["logits"])


def _some(plan: Plan, rng: np.random.Generator) -> Removed:
    """Any number of each family's channels, but not all."""
    removed = np.zeros(plan.classes.count, dtype=np.bool_)
    for family in plan.families:
        count = rng.integers(0, len(family.classes) + 1)
        removed[rng.choice(family.classes, count, replace=False)] = True
    return plan.spare(removed, rng.random(plan.classes.count), 1)


def _assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * max(1, np.abs(wanted).max()))


def _check_file(graph: Graph, model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "sliced.onnx"
    formats.save(graph, path)
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape[0] == "batch"
    assert session.get_outputs()[0].shape[0] == "batch"
    for batch in (1, 4):
        feeds = nets.feeds(model, batch, seed=batch)
        ours = execute.run(graph, feeds)["logits"]
        scale = max(1, np.abs(ours).max())
        np.testing.assert_allclose(session.run(None, feeds)[0], ours, rtol=0, atol=1e-4 * scale)


def _check_training(graph: Graph, feeds: dict[str, np.ndarray]) -> None:
    module = execute.as_module(graph).train()
    logits = module(*(torch.from_numpy(feeds[value.name]) for value in graph.inputs))[0]
    logits.square().mean().backward()
    gradients = [w.grad for w in module.weights.values() if w.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
