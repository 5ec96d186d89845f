"""What a network computes without some channels is what it computed with them, but for these channels."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.engine import nets
from tests.engine.graph.channels import corner_nets, image_nets, oracle, token_nets
from workers.engine import formats
from workers.engine.graph import Graph, channels, execute, shapes
from workers.engine.graph.channels.plan import Plan, Removed

STATISTICS = (
    "group_normalization",
    "group_normalization_as_exported",
    "group_normalization_without_bias",
    "channels_first_layer_norm",
    "channel_attention_over_space",
    "layer_normalization",
    "layer_normalization_by_hand",
    "rms_normalization",
    "normalized_vectors",
    "vision_transformer",
    "text_transformer",
)
"""Nets with a mean or the like over channels that can go."""

EXACT = {
    **image_nets.NETS,
    **token_nets.NETS,
    **corner_nets.NETS,
    **{name: functools.partial(build, 0) for name, build in nets.NETS.items()},
}


def loaded(model: onnx.ModelProto, tmp_path: Path) -> Graph:
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    return formats.load(path)


def half(plan: Plan, seed: int = 0) -> Removed:
    """Half of each family, drawn."""
    rng = np.random.default_rng(seed)
    removed = np.zeros(plan.classes.count, dtype=np.bool_)
    for family in plan.families:
        removed[rng.choice(family.classes, len(family.classes) // 2, replace=False)] = True
    return plan.spare(removed, np.ones(plan.classes.count), 1)


def assert_equal(found: dict, wanted: dict) -> None:
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5 * max(1, np.abs(array).max()))


@pytest.mark.parametrize("name", EXACT)
def test_removed_channels_are_as_if_absent(name, tmp_path):
    model = EXACT[name]()
    graph = loaded(model, tmp_path)
    sizes = shapes.example_shapes(graph, 1)
    plan = channels.plan.make(graph, sizes)
    removed = half(plan)
    assert bool(plan.narrowed(removed)) == (name in STATISTICS)
    assert_exact(graph, plan, removed, nets.feeds(model, 3, seed=1), tmp_path)


def assert_exact(graph, plan, removed, feeds, tmp_path) -> None:
    """Removes channels; what is left computes what it must, also in ONNX Runtime."""
    assert removed.any()
    absent = oracle.absent(graph, plan, removed, feeds)
    zeroed = oracle.zeroed(graph, plan, removed, feeds)
    channels.surgery.remove(graph, plan, removed, shapes.example_shapes(graph, 1))
    sliced = execute.run(graph, feeds)
    assert_equal(sliced, absent)
    if not plan.narrowed(removed):
        assert_equal(sliced, zeroed)
    formats.save(graph, tmp_path / "sliced.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "sliced.onnx")
    np.testing.assert_allclose(session.run(None, feeds)[0], sliced["logits"], atol=1e-4)


ATTENTION = {
    **token_nets.ATTENTION,
    **{n: build for n, build in corner_nets.NETS.items() if "heads" in n or "attention" in n},
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_loses_heads_and_places_in_those_that_stay(name, tmp_path):
    """Twice: what is left is told apart as it was, also where one head of keys is left."""
    model = ATTENTION[name]()
    graph = loaded(model, tmp_path)
    sizes = shapes.example_shapes(graph, 1)
    plan = channels.plan.make(graph, sizes, attention="both")
    by_heads = [f for f in plan.families if len(f.classes) in (token_nets.HEADS, 2)]
    by_width = [f for f in plan.families if f.is_beside]
    assert by_heads
    assert by_width
    whole = {name for family in by_heads for name, _ in family.axes}
    assert all(whole & {name for name, _ in family.axes} for family in by_width)
    assert_exact(graph, plan, half(plan), nets.feeds(model, 3, seed=1), tmp_path)
    plan = channels.plan.again(graph, sizes, plan)
    assert [f.axes for f in plan.families if f.is_beside] == [f.axes for f in by_width]
    assert_exact(graph, plan, half(plan, 1), nets.feeds(model, 3, seed=2), tmp_path)


@pytest.mark.parametrize("choice", ["heads", "width"])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_loses_whole_heads_or_their_width(name, choice, tmp_path):
    model = ATTENTION[name]()
    graph = loaded(model, tmp_path)
    plan = channels.plan.make(graph, shapes.example_shapes(graph, 1), attention=choice)
    inner = [family for family in plan.families if len(family.classes) != token_nets.WIDTH]
    assert inner
    for family in inner:
        if choice == "heads":
            assert len(family.classes) <= token_nets.HEADS
            assert family.width in (token_nets.SIZE, 1), "a learned mask has one slice for a head"
        else:
            assert family.width * len(family.classes) % token_nets.SIZE == 0
            assert len(family.classes) in (token_nets.SIZE, token_nets.SIZE // 2)
    removed = half(plan)
    assert_exact(graph, plan, removed, nets.feeds(model, 3, seed=1), tmp_path)


@pytest.mark.parametrize("name", STATISTICS)
def test_kept_statistics_make_zeroed_channels_equal_removed_ones(name, tmp_path):
    model = EXACT[name]()
    graph = loaded(model, tmp_path)
    sizes = shapes.example_shapes(graph, 1)
    plan = channels.plan.make(graph, sizes, normalized="keep")
    removed = half(plan)
    assert not plan.narrowed(removed)
    feeds = nets.feeds(model, 3, seed=1)
    zeroed = oracle.zeroed(graph, plan, removed, feeds)
    channels.surgery.remove(graph, plan, removed, sizes)
    assert_equal(execute.run(graph, feeds), zeroed)


@pytest.mark.parametrize("name", nets.NETS)
def test_cost_is_foretold(name, tmp_path):
    graph = loaded(nets.NETS[name](0), tmp_path)
    sizes = shapes.example_shapes(graph, 1)
    plan = channels.plan.make(graph, sizes)
    removed = half(plan)
    cost = channels.surgery.cost(graph, plan, removed, sizes)
    channels.surgery.remove(graph, plan, removed, sizes)
    assert cost.macs == sum(shapes.macs(graph, sizes).values())
    assert cost.parameters == sum(w.size for w in graph.parameters().values())


def test_later_rounds_choose_what_the_first_did(tmp_path):
    """Heads were wider than many; what is left of them is narrower, and is still what goes."""
    graph = loaded(token_nets.attention_separate(), tmp_path)
    sizes = shapes.example_shapes(graph, 1)
    plan = channels.plan.make(graph, sizes)
    channels.surgery.remove(graph, plan, half(plan), sizes)
    again = channels.plan.again(graph, sizes, plan)
    assert [f.axes for f in again.families] == [f.axes for f in plan.families]
    assert [len(f.classes) for f in again.families] == [8, 3, 3]
    assert [f.axes for f in channels.plan.make(graph, sizes).families] != [
        f.axes for f in plan.families
    ]
