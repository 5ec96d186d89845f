from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx
import pytest
import torch

from modelpress.spec.prune import PruneSupermask
from tests.engine import jobs, nets
from workers import outputs
from workers.engine import formats, outbox, passes, pipeline, verification
from workers.engine.data import dataset
from workers.engine.errors import NothingChanged
from workers.engine.graph import execute, match
from workers.engine.passes.prune import _seeded, supermask
from workers.engine.passes.prune._seeded import Drawn, Seeded
from workers.engine.passes.prune.supermask import Masked

QUICK = {"epochs": 1, "batch_size": 16}
ONE_LAYER = """
    net (float[batch, 6] x) => (float[batch, 3] logits) <float[6, 3] w>
    { logits = MatMul(x, w) }
"""


def learn(graph, tmp_path, train, seed=0, **options):
    ctx = jobs.context_of(graph, tmp_path, train, seed=seed)
    step = PruneSupermask(**{"training": QUICK, "draws": 2, **options})
    return passes.apply(graph.clone(), step, ctx), ctx


def one_layer(tmp_path):
    onnx.save(jobs.text(ONE_LAYER), tmp_path / "one.onnx")
    return formats.load(tmp_path / "one.onnx")


def masked(graph, *, rescale=True, seed=0):
    names = list(dict.fromkeys(layer.weight for layer in match.layers(graph)))
    return Masked(graph, names, torch.Generator().manual_seed(seed), rescale=rescale)


def layer_weights(graph):
    return {layer.weight: graph.weight(layer.weight) for layer in match.layers(graph)}


def separable(samples=200, seed=0):
    """64 features, of which ten are raised for one class each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, nets.CLASSES, samples)
    x = rng.normal(0, 0.3, (samples, 64)).astype(np.float32)
    x[np.arange(samples), labels * 6] += 2
    made = dataset.with_columns([("x", dataset.ArrayColumn(x, x.dtype))], samples)
    return dataset.Dataset(made.columns, made.rows, labels=labels)


def test_training_changes_scores_and_no_weight(tmp_path):
    _, graph = jobs.load("plain_cnn", tmp_path)
    module = masked(graph).train()
    before = {n: w.detach().clone() for n, w in module.network.weights.items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=10.0, momentum=0.9, weight_decay=0.1)
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.zero_grad()
        module(x)[0].square().mean().backward()
        optimizer.step()
    assert all(bool((w == before[n]).all()) for n, w in module.network.weights.items())
    assert all(w.grad is None for w in module.network.weights.values())
    assert all(bool((score != 0).any()) for score in module.scores)


def test_gradient_passes_the_draw_as_if_it_were_the_probability(tmp_path):
    graph = one_layer(tmp_path)
    module = masked(graph, rescale=False)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        module.scores[0].normal_(generator=torch.Generator().manual_seed(2))
    (logits,) = module(x)
    logits.sum().backward()
    probability = torch.sigmoid(module.scores[0].detach())
    of_weight = x.sum(0)[:, None].expand(6, 3)
    wanted = of_weight * module.network.weights["w"] * probability * (1 - probability)
    torch.testing.assert_close(module.scores[0].grad, wanted.detach())


def test_everything_kept_is_the_network_of_the_drawn_weights(tmp_path):
    model, graph = jobs.load("residual_cnn", tmp_path)
    module = masked(graph).eval()
    with torch.no_grad():
        for score in module.scores:
            score.fill_(math.inf)
    feeds = nets.feeds(model, 4, seed=0)
    found = module(torch.from_numpy(feeds["image"]))[0].detach().numpy()
    np.testing.assert_array_equal(found, execute.run(graph, feeds)["logits"])


def test_what_is_kept_is_scaled_by_weights_over_kept_weights(tmp_path):
    graph = one_layer(tmp_path)
    mask = np.zeros((6, 3), bool)
    mask[:2] = True
    x = torch.eye(6)
    ones = {"w": torch.from_numpy(mask).float()}
    plain = masked(graph, rescale=False).run(ones, (x,))[0].detach().numpy()
    scaled = masked(graph, rescale=True).run(ones, (x,))[0].detach().numpy()
    np.testing.assert_allclose(plain, np.where(mask, graph.weight("w"), 0))
    np.testing.assert_allclose(scaled, 3 * plain, rtol=1e-6)


def test_draws_follow_the_probabilities(tmp_path):
    graph = one_layer(tmp_path)
    module = masked(graph)
    with torch.no_grad():
        module.scores[0].fill_(math.log(3))
    kept = np.mean([module.sample()["w"].mean() for _ in range(400)])
    assert kept == pytest.approx(0.75, abs=0.02)
    assert module.likeliest()["w"].all()


@pytest.mark.parametrize("weights", ["signed_constant", "random"])
def test_every_kept_weight_is_the_drawn_one_rescaled(weights, tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    result, ctx = learn(graph, tmp_path, jobs.dataset_of(model), weights=weights)
    drawn = Drawn(ctx.seed_of("weights"), weights == "signed_constant")
    dense = drawn.graph(graph)
    for name, found in layer_weights(result).items():
        wanted, kept = drawn.weight(dense, name), found != 0
        np.testing.assert_allclose(found[kept], wanted[kept] * kept.size / kept.sum(), rtol=1e-6)
        if weights == "signed_constant":
            assert len(np.unique(np.abs(wanted))) == 1
            assert (np.sign(wanted) == np.sign(dense.weight(name))).all()


def test_a_mask_alone_learns_where_the_random_network_guesses(tmp_path):
    _, graph = jobs.load("mlp", tmp_path)
    training = {"epochs": 25, "batch_size": 16, "learning_rate": 30}
    result, ctx = learn(graph, tmp_path, separable(), training=training)
    data = separable(seed=1)
    x = data.batch(np.arange(200))["x"]

    def accuracy(of):
        return (execute.run(of, {"x": x})["logits"].argmax(1) == data.labels).mean()

    untrained = Drawn(ctx.seed_of("weights"), signed_constant=True).graph(graph)
    assert accuracy(untrained) < 0.3
    assert accuracy(result) > 0.8
    (curve,) = ctx.coverage.curves
    assert curve.points[0].runs == 2
    assert 0.2 < curve.points[0].x < 0.8


def test_artifact_has_the_mask_of_lowest_training_loss(tmp_path):
    model, graph = jobs.load("mlp", tmp_path)
    train = jobs.dataset_of(model)
    result, ctx = learn(graph, tmp_path, train, draws=5)
    (note,) = [n for n in ctx.coverage.notes if n.startswith("the artifact has")]
    assert "of 6 masks" in note
    logits = execute.run(result, train.batch(np.arange(48)))["logits"]
    loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(train.labels)
    )
    assert f"{float(loss):.4g}" in note


def test_the_mask_of_lowest_training_loss_is_chosen(tmp_path):
    graph = one_layer(tmp_path)
    x = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    labels = (x @ graph.weight("w")).argmax(1)
    made = dataset.with_columns([("x", dataset.ArrayColumn(x, x.dtype))], 30)
    ctx = jobs.context_of(graph, tmp_path, dataset.Dataset(made.columns, made.rows, labels=labels))
    unmasked = Seeded(Drawn(1, False), False, {})
    kept = [np.zeros((6, 3), bool), np.ones((6, 3), bool), np.eye(6, 3, dtype=bool)]
    candidates = [
        supermask.Candidate(f"mask {i}", dataclasses.replace(unmasked, masks={"w": mask}))
        for i, mask in enumerate(kept)
    ]
    module = masked(graph, rescale=False)
    best, result = supermask.choose(graph, module, iter(candidates), ctx)
    assert best is candidates[1].seeded
    assert (result.weight("w") == Drawn(1, False).graph(graph).weight("w")).all()


def test_artifact_has_the_statistics_of_its_training(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    result, _ = learn(graph, tmp_path, jobs.dataset_of(model))
    found = _seeded.statistics(result)
    assert found
    assert all(len(np.unique(statistic)) > 2 for statistic in found.values())


def test_job_leaves_a_file_that_gives_the_weights_of_the_artifact_back(tmp_path):
    model = nets.NETS["plain_cnn"](0)
    train = jobs.arrays_of(model, 60)
    step = {"kind": "prune.supermask", "training": QUICK, "draws": 2}
    jobdir = jobs.make(tmp_path / "job", model, [step], train=train)
    pipeline.compress(jobdir)
    verification.verify_export(jobdir)
    folder = jobdir / "output/artifacts"
    report = outputs.finished_report(jobdir, outbox.read_compress_order(jobdir))
    assert len(outputs.artifacts(jobdir, report, max_bytes=1 << 20)) == 2
    assert [(a.name, a.format) for a in report.artifacts] == [
        ("model.onnx", "onnx"),
        ("supermask.npz", "npz"),
    ]
    artifact = onnx.load(folder / "model.onnx")
    wiped = formats.load(folder / "model.onnx")
    for name, array in wiped.parameters().items():
        wiped.set_weight(name, np.zeros_like(array))
    decoded = _seeded.read(folder / "supermask.npz", wiped).graph(wiped)
    for tensor in artifact.graph.initializer:
        stored = onnx.numpy_helper.to_array(tensor)
        assert decoded.weight(tensor.name).tobytes() == stored.tobytes(), tensor.name


def test_file_is_dropped_where_a_later_step_changes_the_network(tmp_path):
    model = nets.NETS["mlp"](0)
    steps = [
        {"kind": "prune.supermask", "training": QUICK, "draws": 1},
        {"kind": "quantize.int8", "samples": 16},
    ]
    jobdir = jobs.make(tmp_path / "job", model, steps, train=jobs.arrays_of(model, 60))
    pipeline.compress(jobdir)
    assert [p.name for p in (jobdir / "output/artifacts").iterdir()] == ["model.onnx"]


def test_file_weighs_one_bit_for_each_weight_and_little_else(tmp_path):
    model, graph = jobs.load("mlp", tmp_path)
    result, ctx = learn(graph, tmp_path, jobs.dataset_of(model))
    (path,) = ctx.coverage.files
    bits = sum(w.size for w in layer_weights(result).values())
    assert math.ceil(bits / 8) < path.stat().st_size < math.ceil(bits / 8) + 2500
    (note,) = [n for n in ctx.coverage.notes if "a seed of 8 bytes" in n]
    assert f"{path.stat().st_size:,} bytes:" in note
    assert f"{bits:,} weights" in note


def test_entropy_of_masks_is_that_of_their_coins():
    masks = {"half": np.arange(80) % 2 == 0, "all": np.ones(10, bool), "few": np.arange(100) < 10}
    seeded = Seeded(Drawn(1, True), True, masks)
    assert seeded.bits == 190
    few = -(0.1 * math.log2(0.1) + 0.9 * math.log2(0.9))
    assert seeded.entropy_bits == pytest.approx(80 + 0 + 100 * few)


def test_file_of_another_network_is_refused(tmp_path):
    model, graph = jobs.load("mlp", tmp_path)
    _, ctx = learn(graph, tmp_path, jobs.dataset_of(model))
    other = one_layer(tmp_path)
    with pytest.raises(ValueError, match="has no weight"):
        _seeded.read(ctx.coverage.files[0], other)


def test_file_of_another_format_is_refused(tmp_path):
    _, graph = jobs.load("mlp", tmp_path)
    np.savez(tmp_path / "other.npz", format=np.uint32(2))
    with pytest.raises(ValueError, match="format 2, not 1"):
        _seeded.read(tmp_path / "other.npz", graph)


def test_excluded_layers_are_drawn_but_keep_every_weight(tmp_path):
    model, graph = jobs.load("mlp", tmp_path)
    first, *others = layer_weights(graph)
    result, ctx = learn(graph, tmp_path, jobs.dataset_of(model), exclude=(first,))
    assert (result.weight(first) != 0).all()
    assert (result.weight(first) != graph.weight(first)).all()
    assert {t.layer for t in ctx.coverage.touched} == set(others)
    with pytest.raises(NothingChanged, match="no weight"):
        learn(graph, tmp_path, jobs.dataset_of(model), exclude=("*",))


def test_another_seed_draws_other_weights(tmp_path):
    model, graph = jobs.load("mlp", tmp_path)
    one, two = (learn(graph, tmp_path, jobs.dataset_of(model), seed=s)[0] for s in (0, 1))
    assert all((w != two.weight(name)).any() for name, w in layer_weights(one).items())
