"""rewrite.low_rank: what is lost is what was dropped, the row of layers is the product, and no rank that saves nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from pydantic import ValidationError

from modelpress.spec.rewrite import RewriteLowRank
from modelpress.spec.sensitivity import Sensitivity
from tests.engine import jobs, nets
from workers.engine import formats, passes
from workers.engine.errors import NothingChanged, Unsupported
from workers.engine.graph import execute, match
from workers.engine.passes.rewrite import _layers, _target, low_rank
from workers.engine.passes.rewrite._decomposition import Depthwise, Spatial, Svd
from workers.engine.passes.rewrite._tensors import Cp, Tucker

CONVOLUTIONS = [
    "Conv<pads = [1, 2, 0, 1], strides = [2, 1]>(x, w, b)",
    "Conv<dilations = [2, 1]>(x, w, b)",
    'Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, w)',
]
PRODUCTS = [
    "Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, v, b)",
    "Gemm<transA = 1>(t, u)",
    "MatMul(x, u)",
]


def rewrite(model, tmp_path, *, train=None, **options):
    """The step on a net or a model; answers the graph before, the result as its file gives it back, and the context."""
    if isinstance(model, str):
        model, _ = jobs.load(model, tmp_path)
    onnx.save(model, tmp_path / "net.onnx")
    before = formats.load(tmp_path / "net.onnx")
    ctx = jobs.context_of(before.clone(), tmp_path, train)
    after = passes.apply(before.clone(), RewriteLowRank(**options), ctx)
    formats.save(after, tmp_path / "low.onnx")
    return before, formats.load(tmp_path / "low.onnx"), ctx


def convolution(text):
    return jobs.text(f"""
        net (float[batch, 6, 9, 8] x) => (float[batch, c, h, w2] y)
        <float[8, 6, 3, 3] w, float[8] b> {{ y = {text} }}
    """)


def product(text):
    return jobs.text(f"""
        net (float[batch, 12] x) => (float[batch, 10] y)
        <float[10, 12] v, float[12, 10] u, float[10] b> {{ t = Transpose<perm = [1, 0]>(x) y = {text} }}
    """)


def reconstructed(graph, options, ctx):
    """The same network, its weights replaced by what the decompositions multiply to."""
    copy, step = graph.clone(), RewriteLowRank(**options)
    for subject in _layers.find(copy, step, ctx):
        made = low_rank.form(subject, step, None, ctx)
        factors = made.factors(made.at_ratio(options["ratio"]))
        copy.set_weight(subject.name, subject.restored(factors.product))
    return copy


@pytest.mark.parametrize("form", ["spatial", "channel", "tucker", "cp"])
@pytest.mark.parametrize("text", CONVOLUTIONS)
def test_row_of_layers_is_the_convolution_of_the_product(form, text, tmp_path):
    options = {"convolution": form, "ratio": 1.5}
    check_row(convolution(text), options, tmp_path)


@pytest.mark.parametrize("text", PRODUCTS)
def test_two_products_are_the_product(text, tmp_path):
    check_row(product(text), {"ratio": 1.5}, tmp_path)


def test_what_a_transposed_input_is_like_counts(tmp_path):
    """A layer is factored for the inputs it has, whichever way they come."""
    options = {"ratio": 1.5, "activation_aware": True, "samples": 40}
    data, found = jobs.dataset_of(product("MatMul(x, u)"), 40), []
    for text in ("MatMul(x, u)", "Gemm<transA = 1>(t, u)"):
        _, after, _ = rewrite(product(text), tmp_path, train=data, **options)
        found.append(execute.run(after, data.batch(np.arange(40)))["y"])
    np.testing.assert_allclose(*found, atol=1e-5 * np.abs(found[0]).max())


def check_row(model, options, tmp_path):
    before, after, ctx = rewrite(model, tmp_path, **options)
    wanted = execute.run(
        reconstructed(before, options, jobs.context_of(before, tmp_path, None)),
        nets.feeds(model, 3),
    )["y"]
    found = onnxruntime.InferenceSession(tmp_path / "low.onnx").run(None, nets.feeds(model, 3))[0]
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    assert len(match.layers(after)) == len(ctx.coverage.touched[0].change.split("], "))


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("form", [Svd, Spatial])
def test_error_is_the_root_of_the_dropped_singular_values(form, rank):
    weight = np.random.default_rng(0).normal(size=(8, 6, 3, 3))
    made = form(weight)
    lost = np.linalg.norm(weight - made.factors((rank,)).product)
    sigma = np.linalg.svd(made.matrix(), compute_uv=False)
    assert lost == pytest.approx(np.sqrt(np.square(sigma[rank:]).sum()), rel=1e-6)
    assert lost == pytest.approx(made.dropped(rank), rel=1e-6)


def test_error_of_outputs_is_that_of_the_whitened_weight_and_least():
    rng = np.random.default_rng(0)
    weight, x = (
        rng.normal(size=(10, 12)),
        rng.normal(size=(12, 400)) * np.logspace(0, -2, 12)[:, None],
    )
    root = torch.linalg.cholesky(torch.from_numpy(x @ x.T))
    aware, plain = Svd(weight, root), Svd(weight)
    lost = np.linalg.norm((weight - aware.factors((4,)).product) @ x)
    assert lost == pytest.approx(aware.dropped(4), rel=1e-6)
    assert lost < 0.8 * np.linalg.norm((weight - plain.factors((4,)).product) @ x)


def test_layers_whose_inputs_are_not_looked_at_are_named_with_the_reason(tmp_path):
    model, _ = jobs.load("plain_cnn", tmp_path)
    train = jobs.dataset_of(model)
    *_, ctx = rewrite(model, tmp_path, train=train, ratio=1.5, activation_aware=True)
    told = [note for note in ctx.coverage.notes if "by its weights alone" in note]
    assert [note.partition("'")[2].partition("'")[0] for note in told] == ["weight_1", "weight_10"]
    assert all("by 'spatial' it is not taken as a matrix" in note for note in told)


def test_energy_that_needs_too_high_a_rank_leaves_the_layer_alone(tmp_path):
    model = product(PRODUCTS[0])
    with pytest.raises(
        NothingChanged, match=r"K = \d+ saves nothing: it is not below MN/\(M\+N\) = 5.5"
    ):
        rewrite(model, tmp_path, energy=0.999)


def test_a_ratio_out_of_reach_is_told(tmp_path):
    *_, ctx = rewrite(product(PRODUCTS[0]), tmp_path, ratio=9)
    told = "'v': a ratio of 9 is out of reach, its smallest rank has 5.45 times fewer weights"
    assert told in ctx.coverage.notes
    *_, ctx = rewrite(product(PRODUCTS[0]), tmp_path, ratio=2)
    assert not any("out of reach" in note for note in ctx.coverage.notes)


@pytest.mark.parametrize(
    ("made", "bound"),
    [
        (Svd(np.ones((4, 4))), 2),
        (Svd(np.ones((6, 3))), 2),
        (Spatial(np.ones((2, 3, 2, 2))), None),
        (Depthwise(np.ones((6, 2, 1, 3))), 2),
    ],
)
def test_a_rank_that_only_breaks_even_saves_nothing(made, bound):
    """K = MN/(M+N) has as many weights as the layer."""
    assert made.limit == (bound or 2.4)
    assert [made.saves((k,)) for k in (1, 2, 3)] == [True, bound is None, False]


def test_layer_that_is_left_alone_is_listed_with_its_bound(tmp_path):
    _model, graph = jobs.load("mlp", tmp_path)
    name = match.layers(graph)[0].weight
    u, v = np.random.default_rng(0).normal(size=(2, 64))
    graph.set_weight(name, np.outer(u[:48], v).astype(np.float32))
    ctx = jobs.context_of(graph.clone(), tmp_path, None)
    passes.apply(graph, RewriteLowRank(energy=0.95), ctx)
    assert [touched.layer for touched in ctx.coverage.touched] == [name]
    assert all("MN/(M+N)" in skipped.reason for skipped in ctx.coverage.skipped)
    assert len(ctx.coverage.skipped) == 2


@pytest.mark.parametrize("kind", ["spatial", "channel", "tucker", "cp"])
def test_largest_rank_within_the_ratio_is_taken(kind):
    weight = np.random.default_rng(0).normal(size=(8, 6, 3, 3))
    made = {"spatial": Spatial, "channel": Svd, "tucker": Tucker, "cp": Cp}[kind](weight)
    rank = made.at_ratio(2)
    larger = made.ranks[made.ranks.index(rank) + 1]
    assert 2 * made.size(rank) <= weight.size < 2 * made.size(larger)


def test_tucker_finds_what_is_of_low_rank():
    rng = np.random.default_rng(0)
    core, a, b = rng.normal(size=(3, 2, 9)), rng.normal(size=(8, 3)), rng.normal(size=(6, 2))
    weight = np.einsum("sre,os,ir->oie", core, a, b).reshape(8, 6, 3, 3)
    np.testing.assert_allclose(Tucker(weight).factors((3, 2)).product, weight, atol=1e-10)
    assert Tucker(weight).at_energy(1 - 1e-9) == (3, 2)


def test_tucker_is_no_worse_than_cutting_both_sides_once():
    weight = np.random.default_rng(1).normal(size=(8, 6, 3, 3))
    sides = weight.reshape(8, -1), weight.swapaxes(0, 1).reshape(6, -1)
    a, b = (np.linalg.svd(side)[0][:, :3] for side in sides)
    cut = np.einsum("oixy,os,ir,ps,jr->pjxy", weight, a, b, a, b)
    found = Tucker(weight).factors((3, 3)).product
    assert np.linalg.norm(weight - found) <= np.linalg.norm(weight - cut) * (1 + 1e-9)


def test_cp_finds_what_is_of_low_rank_and_says_where_it_does_not_converge(monkeypatch):
    rng = np.random.default_rng(0)
    sides = [rng.normal(size=(n, 2)) for n in (8, 6, 3, 3)]
    weight = np.einsum("oz,iz,xz,yz->oixy", *sides)
    found = Cp(weight).factors((2,))
    np.testing.assert_allclose(found.product, weight, atol=1e-2 * np.abs(weight).max())
    assert not found.warning
    monkeypatch.setattr("workers.engine.passes.rewrite._tensors._CP_SWEEPS", 2)
    assert "did not converge in 2 sweeps" in Cp(rng.normal(size=weight.shape)).factors((4,)).warning


@pytest.mark.parametrize("cost", ["macs", "bytes"])
def test_target_is_kept_by_the_exported_network(cost, tmp_path):
    model, _ = jobs.load("plain_cnn", tmp_path)
    train = jobs.dataset_of(model, labels=False)
    before, after, ctx = rewrite(model, tmp_path, train=train, target={cost: 0.6}, samples=24)
    assert spent(after, cost) <= 0.6 * spent(before, cost)
    assert spent(after, cost) > 0.4 * spent(before, cost)
    assert {curve.name for curve in ctx.coverage.curves} >= {t.layer for t in ctx.coverage.touched}


def spent(graph, cost):
    if cost == "bytes":
        return sum(array.nbytes for array in graph.parameters().values())
    return sum(_target.shapes.macs(graph, {"image": (1, 1, 8, 8)}).values())


@pytest.mark.parametrize("form", ["spatial", "channel", "tucker", "cp"])
@pytest.mark.parametrize("text", CONVOLUTIONS)
def test_foreseen_cost_is_that_of_the_result(form, text, tmp_path):
    options = {"convolution": form, "ratio": 1.5}
    before, after, ctx = rewrite(convolution(text), tmp_path, **options)
    (subject,) = _layers.find(before, RewriteLowRank(**options), ctx)
    made = low_rank.form(subject, RewriteLowRank(**options), None, ctx)
    candidate = _layers.Candidate(subject, made, (made.at_ratio(1.5),))
    facts = _target.shapes.measure(before, {"x": (1, 6, 9, 8)})
    found = sum(_target.shapes.macs(after, {"x": (1, 6, 9, 8)}).values())
    assert _target._macs(candidate, facts)[0] == found


def test_target_that_is_out_of_reach_says_how_near_one_gets(tmp_path):
    model, _ = jobs.load("mlp", tmp_path)
    train = jobs.dataset_of(model, labels=False)
    with pytest.raises(
        Unsupported, match=r"target bytes 0.01 can't be reached: .* 0\.\d+ are left"
    ):
        rewrite(model, tmp_path, train=train, target={"bytes": 0.01})


def known(graph, harmful):
    """Sensitivities that say that one layer costs much and the others nothing."""
    layers = match.layers(graph)
    rows = [
        {
            "layer": layer.weight,
            "method": "low_rank",
            "amount": amount,
            "bytes_before": 1,
            "bytes_after": 1,
            "error": (1 - amount) * (1.0 if layer.weight == harmful else 1e-6),
            "agreement": None,
            "accuracy": None,
        }
        for layer in layers
        for amount in (0.125, 0.25, 0.5)
    ]
    of = [
        {"name": la.weight, "kind": la.kind, "shape": graph.weight(la.weight).shape}
        for la in layers
    ]
    return Sensitivity(
        model_sha256="", seed=0, samples=7, group_size=None, accuracy=None, layers=of, rows=rows
    )


def test_what_is_known_of_layers_is_not_measured_again(tmp_path):
    model, graph = jobs.load("mlp", tmp_path)
    first, second, _ = (layer.weight for layer in match.layers(graph))
    for harmful, spared in ((first, second), (second, first)):
        ctx = jobs.context_of(graph.clone(), tmp_path, jobs.dataset_of(model, labels=False))
        ctx = replace(ctx, sensitivity=known(graph, harmful))
        passes.apply(graph.clone(), RewriteLowRank(target={"bytes": 0.85}), ctx)
        assert "what layers cost alone was known, from 7 training samples" in ctx.coverage.notes
        touched = {touched.layer for touched in ctx.coverage.touched}
        assert harmful not in touched
        assert spared in touched


def test_what_is_known_of_another_form_is_measured_anew(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    ctx = jobs.context_of(graph.clone(), tmp_path, jobs.dataset_of(model, labels=False))
    ctx = replace(ctx, sensitivity=known(graph, ""))
    step = RewriteLowRank(target={"bytes": 0.7}, convolution="tucker", samples=8)
    passes.apply(graph.clone(), step, ctx)
    assert not any("was known" in note for note in ctx.coverage.notes)


def test_tied_weights_share_their_factors(tmp_path):
    model = jobs.text("""
        net (float[batch, 12] x) => (float[batch, 12] y) <float[12, 12] w>
        { h = MatMul(x, w) r = Relu(h) y = MatMul(r, w) }
    """)
    _, after, _ = rewrite(model, tmp_path, ratio=2)
    assert sorted(after.parameters()) == ["w_basis", "w_mix"]
    assert len(match.layers(after)) == 4


def test_new_nodes_and_weights_are_named_after_the_layer(tmp_path):
    before, after, _ = rewrite("plain_cnn", tmp_path, ratio=1.5)
    known = {layer.name for layer in match.layers(before)}
    for layer in match.layers(after):
        assert layer.name in known or layer.name.rpartition("_")[0] in known
        assert any(layer.weight.startswith(f"{old.weight}") for old in match.layers(before))


def sides(graph, weight):
    """Shapes of the layers that stand for one, by the names of their weights."""
    names = [name for name in graph.parameters() if name.startswith(f"{weight}_")]
    return {name.removeprefix(f"{weight}_"): graph.weight(name).shape for name in names}


def test_layers_with_a_rank_of_their_own_have_it_and_the_others_go_by_the_rule(tmp_path):
    overrides = [{"layers": "Gemm_22", "rank": 5}, {"layers": "weight_10", "rank": 6}]
    _, after, _ = rewrite("plain_cnn", tmp_path, ratio=2, overrides=overrides)
    assert sides(after, "weight_1") == {"vertical": (1, 1, 3, 1), "horizontal": (8, 1, 1, 3)}
    assert sides(after, "weight_10") == {"vertical": (6, 8, 3, 1), "horizontal": (16, 6, 1, 3)}
    assert sides(after, "weight_20") == {"basis": (5, 256), "mix": (32, 5)}
    assert sides(after, "weight_24") == {"basis": (3, 32), "mix": (10, 3)}


def test_overrides_alone_change_the_named_layers_alone(tmp_path):
    overrides = [{"layers": "weight_10", "rank": [4, 5]}]
    before, after, ctx = rewrite("plain_cnn", tmp_path, convolution="tucker", overrides=overrides)
    assert sides(after, "weight_10") == {
        "inputs": (5, 8, 1, 1),
        "core": (4, 5, 3, 3),
        "outputs": (16, 4, 1, 1),
    }
    left = {skipped.layer: skipped.reason for skipped in ctx.coverage.skipped}
    assert set(left) == {layer.weight for layer in match.layers(before)} - {"weight_10"}
    assert all("no override names it" in reason for reason in left.values())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"overrides": [{"layers": "fc*", "rank": 3}]}, r"'fc\*' matches no layer .* 'weight_1'"),
        ({"overrides": [{"layers": "*_1", "rank": 28}]}, r"K = 28 .* MN/\(M\+N\) = 27\.4"),
    ],
)
def test_an_override_without_effect_is_refused(options, reason, tmp_path):
    with pytest.raises(NothingChanged, match=reason):
        rewrite("mlp", tmp_path, **options)


@pytest.mark.parametrize(
    ("rank", "reason"),
    [
        ([17, 1], "ranks 17 of the outputs and 1 of the inputs are not within its 16 and 8"),
        ([16, 8], "ranks 16 of the outputs and 8 of the inputs save nothing"),
    ],
)
def test_ranks_that_save_nothing_leave_their_layer_alone(rank, reason, tmp_path):
    overrides = [{"layers": "weight_10", "rank": rank}]
    options = {"convolution": "tucker", "ratio": 1.5, "overrides": overrides}
    _, _, ctx = rewrite("plain_cnn", tmp_path, **options)
    left = {skipped.layer: skipped.reason for skipped in ctx.coverage.skipped}
    assert left["weight_10"].startswith(reason)
    assert ctx.coverage.touched


@pytest.mark.parametrize(("rank", "layer"), [(3, "weight_10"), ([3, 4], "weight_2*")])
def test_another_number_of_ranks_than_a_layer_has_is_refused(rank, layer, tmp_path):
    overrides = [{"layers": layer, "rank": rank}]
    with pytest.raises(Unsupported, match=r"'weight_\d+' has \d ranks?, \d given"):
        rewrite("plain_cnn", tmp_path, convolution="tucker", overrides=overrides)


def test_a_target_is_met_beside_layers_with_a_rank_of_their_own(tmp_path):
    model, graph = jobs.load("mlp", tmp_path)
    first, *others = (layer.weight for layer in match.layers(graph))
    train = jobs.dataset_of(model, labels=False)
    for rank in (2, 20):
        overrides = [{"layers": first, "rank": rank}]
        options = {"target": {"bytes": 0.75}, "overrides": overrides}
        before, after, ctx = rewrite("mlp", tmp_path, train=train, **options)
        assert sides(after, first)["basis"][0] == rank
        assert spent(after, "bytes") <= 0.75 * spent(before, "bytes")
        touched = {touched.layer for touched in ctx.coverage.touched}
        assert (touched > {first}) is (rank == 20)
        assert {curve.name for curve in ctx.coverage.curves} == set(others)


def test_ranks_are_said_once():
    with pytest.raises(ValidationError, match="or overrides alone do; none is given"):
        RewriteLowRank()
    with pytest.raises(ValidationError, match="ratio and energy is given"):
        RewriteLowRank(ratio=2, energy=0.9)
    assert RewriteLowRank(target={"macs": 0.5}).uses_sensitivity
    assert not RewriteLowRank(target={"macs": 0.5}, activation_aware=True).uses_sensitivity
    assert not RewriteLowRank(ratio=2).uses_sensitivity
