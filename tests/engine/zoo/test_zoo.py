"""The student zoo: the papers' counts at the papers' settings, and networks that learn at small ones."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional

from modelpress.spec.architecture import Architecture
from modelpress.spec.recipe import STEPS
from tests.engine import jobs
from workers.engine import formats, passes, zoo
from workers.engine.errors import Unsupported
from workers.engine.graph import execute, parameters, shapes, verify

EXACT = {
    "squeezenet_1_0": 1_248_424,
    "squeezenet_1_1": 1_235_496,
    "mobilenet_v1": 4_231_976,
    "mobilenet_v2": 3_504_872,
    "shufflenet_v1": 1_865_728,
    "shufflenet_v2": 2_278_604,
    "xception": 22_855_952,
    "ghostnet": 5_182_508,
}
"""Parameters. Those of Xception are in its paper (table 3); the others round to what the papers give."""

PAPERS = {  # millions of parameters, of multiply-accumulates, relative tolerance of either; none where the paper has no figure
    "squeezenet_1_0": (1.248, None, 1e-3, None),
    "mobilenet_v1": (4.2, 569, 0.01, 1e-3),
    "mobilenet_v2": (3.4, 300, 0.04, 4e-3),
    "shufflenet_v1": (None, 140, None, 0.02),
    "shufflenet_v2": (2.3, 146, 0.01, 0.01),
    "xception": (22.855952, None, 1e-9, None),
    "ghostnet": (5.2, 141, 5e-3, 2e-3),
}
"""MobileNet v2 gives 3.4 M, its table of layers 3.50 M; ShuffleNet v1 rounds to tens of millions; both versions of it count more than products."""

HALF = {  # width, paper's millions of multiply-accumulates, tolerance
    ("mobilenet_v1", 0.5): (149, 0.01),
    ("mobilenet_v1", 0.25): (41, 0.01),
    ("mobilenet_v2", 0.5): (97, 0.01),
    ("shufflenet_v1", 0.5): (38, 0.02),
    ("shufflenet_v2", 0.5): (41, 0.02),
    ("shufflenet_v2", 2.0): (591, 0.02),
    ("ghostnet", 0.5): (42, 0.02),
}

TINY = {"width": 0.1, "depth": 0.3}


def student(name, shape=(3, 224, 224), classes=1000, seed=0, **sizes):
    asked = Architecture(name=name, **sizes)
    return zoo.build(asked, shape, classes, np.random.default_rng(seed))


def macs_of(graph, shape=(3, 224, 224)):
    return sum(shapes.macs(graph, {"image": (1, *shape)}).values())


@pytest.mark.parametrize("name", zoo.BUILDERS)
def test_counts_at_the_papers_settings(name, record_property):
    graph = student(name)
    found, macs = parameters.count(graph), macs_of(graph)
    assert found == EXACT[name]
    millions, products, of_parameters, of_macs = PAPERS.get(name, (None,) * 4)
    if millions is not None:
        assert found / 1e6 == pytest.approx(millions, rel=of_parameters)
    if products is not None:
        assert macs / 1e6 == pytest.approx(products, rel=of_macs)
    record_property("figure", f"{name}: {found:,} parameters, {macs:,} multiply-accumulates")


def test_squeezenet_1_1_computes_2_4_times_less():
    assert macs_of(student("squeezenet_1_0")) / macs_of(student("squeezenet_1_1")) == (
        pytest.approx(2.4, rel=0.06)
    )


@pytest.mark.parametrize(("net", "expected"), HALF.items(), ids=str)
def test_narrow_and_wide_ones_compute_what_the_papers_say(net, expected):
    name, width = net
    assert macs_of(student(name, width=width)) / 1e6 == pytest.approx(expected[0], rel=expected[1])


@pytest.mark.parametrize("name", zoo.BUILDERS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 37, 21)])
def test_odd_sizes_run_the_same_in_onnx_runtime(name, shape, tmp_path):
    graph = student(name, shape, 7, **TINY)
    verify.verify(graph)
    formats.save(graph, tmp_path / "net.onnx")
    feeds = {"image": np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)}
    [got] = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, feeds)
    assert got.shape == (2, 7)
    np.testing.assert_allclose(execute.run(graph, feeds)["logits"], got, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", zoo.BUILDERS)
def test_the_loss_falls(name):
    module = execute.as_module(student(name, (1, 12, 12), 3, **TINY)).train()
    x, y = stripes()
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(16):
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(x)[0], y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])


def stripes(samples=48):
    """Images with a bright row, column or both, by class."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 0.3, (samples, 1, 12, 12)), np.arange(samples) % 3
    for image, kind, place in zip(x[:, 0], y, rng.integers(0, 12, samples), strict=True):
        if kind != 1:
            image[place] += 2
        if kind != 0:
            image[:, place] += 2
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


@pytest.mark.parametrize("name", zoo.BUILDERS)
def test_same_seed_same_weights(name):
    one, same, other = (student(name, (1, 8, 8), 3, seed, **TINY) for seed in (1, 1, 2))
    weight = next(name for name, array in one.parameters().items() if array.ndim == 4)
    assert np.array_equal(one.weight(weight), same.weight(weight))
    assert not np.array_equal(one.weight(weight), other.weight(weight))


@pytest.mark.parametrize("name", zoo.BUILDERS)
def test_depth_and_width_make_it_smaller(name):
    def count(width=0.25, depth=1.0):
        return parameters.count(student(name, (3, 32, 32), 10, width=width, depth=depth))

    assert count(depth=0.5) < count() < count(depth=2.0)
    assert count(width=0.125) < count()


def test_small_images_keep_a_map_of_four():
    graph = student("mobilenet_v1", (1, 28, 28), 10, width=0.25)
    found = shapes.infer(graph, {"image": (1, 1, 28, 28)})
    [pooled] = [node.inputs[0].name for node in graph.nodes if node.op_type == "GlobalAveragePool"]
    assert found[pooled] == (1, 256, 7, 7)


def test_channels_of_a_student_can_be_pruned(tmp_path):
    graph = student("shufflenet_v2", (1, 12, 12), 3, width=0.25, depth=0.3)
    before = parameters.count(graph)
    ctx = jobs.context_of(graph.clone(), tmp_path, None)
    result = passes.apply(graph, STEPS["prune.channels"](fraction=0.5, round_to=1), ctx)
    verify.verify(result)
    assert parameters.count(result) < 0.75 * before


def test_what_is_no_image_is_refused():
    with pytest.raises(Unsupported, match=r"takes images .* one input is \[64\]"):
        student("ghostnet", (64,), 10)
