"""rewrite.blocks: shapes stay, costs are those of the closed form, and what is left alone has a reason."""

from __future__ import annotations

import re

import numpy as np
import onnxruntime
import pytest
import torch
from pydantic import ValidationError

from modelpress.spec.rewrite import RewriteBlocks
from tests.engine import jobs
from workers.engine import formats, passes
from workers.engine.errors import Diverged, NothingChanged, Unsupported
from workers.engine.graph import Graph, build, execute, match, shapes, verify
from workers.engine.passes.rewrite import blocks

BLOCKS = ("fire", "inverted_residual", "shuffle", "separable", "ghost")
P0, WINDOW, INPUTS, OUTPUTS = 9 * 11, 9, 16, 24


def net(
    inputs=INPUTS, outputs=OUTPUTS, kernel=3, stride=1, pad=None, *, tail="norm", groups=1
) -> Graph:
    """One convolution between two of 1x1, which no block may replace."""
    graph = build.empty({"image": ("batch", 2, 9, 11)})
    b = build.Builder(graph, np.random.default_rng(0))
    x = b.relu(b.conv(graph.inputs[0], inputs, 1, name="head"))
    x = b.conv(
        x,
        outputs,
        kernel,
        stride=stride,
        pad=pad,
        groups=groups,
        bias=tail in ("bias", "both"),
        name="mid",
    )
    x = b.relu(b.batch_norm(x) if tail in ("norm", "both") else x)
    x = b.flatten(b.global_average_pool(b.conv(x, 8, 1, name="last")))
    return b.answer(b.linear(x, 10), "logits", ("batch", 10))


def data_for(graph: Graph, samples=48):
    model = jobs.text(
        "net (float[b, 2, 9, 11] image) => (float[b, 2, 9, 11] y) { y = Relu(image) }"
    )
    return jobs.dataset_of(model, samples)


def rewritten(graph: Graph, tmp_path, *, data=False, **fields):
    ctx = jobs.context_of(graph.clone(), tmp_path, data_for(graph) if data else None)
    result = passes.apply(graph, RewriteBlocks(**fields), ctx)
    verify.verify(result)
    return result, ctx


def macs(graph: Graph) -> int:
    return sum(shapes.macs(graph, {"image": (1, 2, 9, 11)}).values())


def parameters(graph: Graph) -> int:
    return sum(array.size for array in graph.parameters().values())


def closed_form(block: str, after: int) -> int:
    """Written out by hand for 16 -> 24 channels, 3x3."""
    return {
        "fire": 16 * 6 * P0 + 6 * 12 * after + 6 * 12 * 9 * after,
        "inverted_residual": 16 * 9 * after + 16 * 24 * after,
        "shuffle": 16 * 8 // 4 * P0 + 8 * 9 * after + 8 * 8 // 4 * after,
        "separable": 16 * 9 * after + 16 * 24 * after,
        "ghost": 12 * 16 * 9 * after + 12 * 9 * after,
    }[block]


WEIGHTS = {
    "fire": 16 * 6 + 6 + 6 * 12 + 12 + 6 * 12 * 9 + 12 + 2 * 24,
    "inverted_residual": 16 * 9 + 2 * 16 + 16 * 24 + 2 * 24,
    "shuffle": 16 * 8 // 4 + 2 * 8 + 8 * 9 + 2 * 8 + 8 * 8 // 4 + 2 * 8,
    "separable": 16 * 9 + 16 * 24 + 2 * 24,
    "ghost": 12 * 16 * 9 + 12 * 9 + 2 * 24,
}
"""Of each block and the normalizations in it or behind it."""


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("stride", "after"), [(1, 9 * 11), (2, 5 * 6)])
def test_macs_and_parameters_are_those_of_the_closed_form(
    block, stride, after, tmp_path, record_property
):
    graph = net(stride=stride)
    rest = macs(graph) - INPUTS * OUTPUTS * WINDOW * after
    other = parameters(graph) - INPUTS * OUTPUTS * WINDOW - 2 * OUTPUTS
    result, _ = rewritten(graph, tmp_path, block=block)
    assert macs(result) - rest == closed_form(block, after)
    assert parameters(result) - other == WEIGHTS[block]
    record_property(
        "figure",
        f"{block}, stride {stride}: {closed_form(block, after):,} of {INPUTS * OUTPUTS * WINDOW * after:,} MACs",
    )


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("tail", ["norm", "bias", "none"])
@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "stride", "pad"),
    [
        (16, 24, 3, 1, None),
        (16, 16, 3, 1, None),
        (24, 16, 5, 2, None),
        (8, 12, (5, 3), (1, 2), None),
        (16, 24, 3, 1, (0, 1, 0, 1)),
    ],
)
def test_reported_costs_and_shapes_are_the_ones_counted(
    block, tail, inputs, outputs, kernel, stride, pad, tmp_path
):
    graph = net(inputs, outputs, kernel, stride, pad, tail=tail)
    before = macs(graph), parameters(graph)
    if block == "fire" and pad is not None:
        with pytest.raises(NothingChanged, match="differ in size"):
            rewritten(graph, tmp_path, block=block)
        return
    result, ctx = rewritten(graph, tmp_path, block=block)
    [touched] = ctx.coverage.touched
    numbers = [int(word.replace(",", "")) for word in _numbers(touched.change)]
    assert before[0] - macs(result) == numbers[0] - numbers[1]
    assert before[1] - parameters(result) == numbers[2] - numbers[3]


def _numbers(change: str) -> list[str]:
    """Of '...; multiply-accumulates A -> B, parameters C -> D'."""
    macs_part, parameters_part = change.split("multiply-accumulates ")[1].split(", parameters ")
    return [*macs_part.split(" -> "), *parameters_part.split(" -> ")]


@pytest.mark.parametrize("outputs", [23, 24, 25])
def test_a_ghost_answers_exactly_its_outputs(outputs, tmp_path):
    result, _ = rewritten(net(outputs=outputs), tmp_path, block="ghost")
    assert ("Slice" in {node.op_type for node in result.nodes}) is (outputs % 2 == 1)
    feeds = {"image": np.ones((1, 2, 9, 11), np.float32)}
    assert execute.run(result, feeds)["logits"].shape == (1, 10)


@pytest.mark.parametrize("tail", ["norm", "bias", "none", "both"])
def test_first_maps_of_a_ghost_are_those_of_the_convolution(tail, tmp_path):
    graph = net(tail=tail)
    for name in ("norm.running_mean", "norm.bias", "mid.bias"):
        if name in graph.initializers:
            shape = graph.weight(name).shape
            graph.set_weight(name, np.random.default_rng(3).normal(size=shape).astype(np.float32))
    source = graph.clone()
    result, _ = rewritten(graph, tmp_path, block="ghost")
    feeds = {"image": np.random.default_rng(1).normal(size=(1, 2, 9, 11)).astype(np.float32)}
    [name] = [
        blocks._answer(source, layer, blocks._unit(RewriteBlocks()))
        for layer in match.layers(source)
        if layer.name.startswith("mid")
    ]
    want, got = (_value(g, feeds, name) for g in (source, result))
    assert got.shape == want.shape
    np.testing.assert_allclose(got[:, :12], want[:, :12], atol=1e-5)
    assert not np.allclose(got[:, 12:], want[:, 12:], atol=1e-2)


def _value(graph: Graph, feeds, name):
    module = execute.as_module(graph).eval()
    inputs = [torch.from_numpy(array) for array in feeds.values()]
    return module.values(inputs, [name])[name].detach().numpy()


def test_a_convolution_of_rank_one_is_exactly_separable(tmp_path):
    graph = net(tail="bias")
    rng = np.random.default_rng(5)
    w = rng.normal(size=(OUTPUTS, INPUTS, 1, 1)) * rng.normal(size=(1, INPUTS, 3, 3))
    graph.set_weight("mid.weight", w.astype(np.float32))
    graph.set_weight("mid.bias", rng.normal(size=OUTPUTS).astype(np.float32))
    feeds = {"image": rng.normal(size=(2, 2, 9, 11)).astype(np.float32)}
    want = execute.run(graph, feeds)["logits"]
    result, _ = rewritten(graph, tmp_path, block="separable")
    np.testing.assert_allclose(execute.run(result, feeds)["logits"], want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("block", BLOCKS)
def test_layerwise_training_brings_a_block_to_its_convolution(block, tmp_path):
    training = {"epochs": 12, "batch_size": 12, "learning_rate": 0.01}
    result, ctx = rewritten(net(), tmp_path, data=True, block=block, layerwise=training)
    [note] = [note for note in ctx.coverage.notes if note.startswith("layerwise")]
    first, last = (float(part.split()[0]) for part in note.split("loss ")[1].split(", "))
    assert last < 0.85 * first
    formats.save(result, tmp_path / "net.onnx")
    feeds = {"image": np.ones((3, 2, 9, 11), np.float32)}
    [got] = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, feeds)
    np.testing.assert_allclose(execute.run(result, feeds)["logits"], got, rtol=1e-3, atol=1e-4)


def test_the_target_chooses_layers_and_is_kept(tmp_path):
    model, graph = jobs.load("residual_cnn", tmp_path)
    input_shape = {"image": (1, 1, 8, 8)}
    whole = sum(shapes.macs(graph, input_shape).values())
    ctx = jobs.context_of(graph.clone(), tmp_path, jobs.dataset_of(model))
    step = RewriteBlocks(block="separable", target={"macs": 0.7}, samples=32)
    result = passes.apply(graph, step, ctx)
    assert sum(shapes.macs(result, input_shape).values()) <= 0.7 * whole
    kept = [s for s in ctx.coverage.skipped if "target is met" in s.reason]
    assert kept
    assert ctx.coverage.touched


def test_a_batch_that_the_model_fixes_counts_on_both_sides(tmp_path):
    """Told, as chosen by: the block has so many times fewer multiply-accumulates, whatever the batch."""
    told = []
    for batch in ("b", "6"):
        model = jobs.text(f"""
            net (float[{batch}, 16, 9, 11] image) => (float[{batch}, 24, 9, 11] y) <float[24, 16, 3, 3] w>
            {{ y = Conv<pads = [1, 1, 1, 1]>(image, w) }}
        """)
        (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
        _, ctx = rewritten(formats.load(tmp_path / "net.onnx"), tmp_path, block="ghost")
        [change] = [touched.change for touched in ctx.coverage.touched]
        numbers = [int(n.replace(",", "")) for n in re.findall(r"[\d,]{4,}", change)[:2]]
        told.append(numbers)
    assert told[1] == [6 * n for n in told[0]]
    assert told[0][1] == closed_form("ghost", 9 * 11)


def test_a_target_out_of_reach_is_refused(tmp_path):
    with pytest.raises(Unsupported, match=r"target 0\.01 can't be reached: .* are left"):
        rewritten(net(), tmp_path, data=True, target={"macs": 0.01})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"layers": ("last*",)}, "not among the layers that the recipe names"),
        ({"exclude": ("mid.weight",)}, "excluded by the recipe"),
        ({"block": "inverted_residual", "expansion": 8}, "too small to win: the block has"),
    ],
)
def test_layers_left_alone_have_a_reason(fields, reason, tmp_path):
    ctx = jobs.context_of(net(), tmp_path, None)
    with pytest.raises(NothingChanged, match="rewrote no layer"):
        passes.apply(net(), RewriteBlocks(**fields), ctx)
    reasons = {skipped.layer: skipped.reason for skipped in ctx.coverage.skipped}
    assert reasons["mid.weight"].startswith(reason)


@pytest.mark.parametrize(("sizes", "is_left"), [("h, w", True), ("9, 11", False)])
def test_padding_that_goes_by_an_open_size_leaves_the_layer_alone(sizes, is_left, tmp_path):
    """A block has its padding in numbers: right for one size of the image, at a stride."""
    model = jobs.text(f"""
        net (float[b, 2, {sizes}] image) => (float[b, 16, p, q] y) <float[16, 2, 3, 3] v, float[16, 16, 3, 3] w>
        {{ x = Conv<pads = [1, 1, 1, 1]>(image, v) y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w) }}
    """)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    _, ctx = rewritten(formats.load(tmp_path / "net.onnx"), tmp_path, data=True, block="separable")
    reasons = {skipped.layer: skipped.reason for skipped in ctx.coverage.skipped}
    assert ("w" in reasons) is is_left
    assert not is_left or "which the model leaves open" in reasons["w"]


def test_pointwise_and_grouped_convolutions_stay(tmp_path):
    ctx = jobs.context_of(net(), tmp_path, None)
    with pytest.raises(NothingChanged):
        passes.apply(net(outputs=32, groups=4), RewriteBlocks(), ctx)
    reasons = {skipped.layer: skipped.reason for skipped in ctx.coverage.skipped}
    assert "groups" in reasons["mid.weight"]
    assert reasons["head.weight"] == "its kernel is 1: it is pointwise already"


@pytest.mark.parametrize(("most", "taken"), [(2, 2), (3, 2), (4, 4), (7, 4), (8, 8)])
def test_a_shuffle_takes_the_most_groups_that_divide_its_channels(most, taken, tmp_path):
    result, _ = rewritten(net(), tmp_path, block="shuffle", groups=most)
    groups = [n.attributes.get_int("group", 1) for n in result.nodes if n.op_type == "Conv"]
    assert groups[1] == groups[3] == taken


def test_a_survey_says_what_would_be_saved(tmp_path):
    ctx = jobs.context_of(net(), tmp_path, None)
    blocks.survey(net(), ctx)
    [touched] = ctx.coverage.touched
    assert touched.layer == "mid.weight"
    assert "ghost" in touched.change


def test_an_option_of_another_block_is_refused():
    with pytest.raises(ValidationError, match="ratio is of block 'ghost', but block is 'fire'"):
        RewriteBlocks(block="fire", ratio=3)


def test_an_option_at_its_default_is_not_one_of_another_block():
    assert RewriteBlocks.model_validate(RewriteBlocks(block="fire").model_dump()).ratio == 2


def tried_alone(tmp_path) -> float:
    """The harm that choosing goes by, of a block that begins with new weights."""
    ctx = jobs.context_of(net(), tmp_path, data_for(net(), 640))
    step = RewriteBlocks(block="inverted_residual", target={"macs": 0.9}, samples=128)
    passes.apply(net(), step, ctx)
    [note] = [note for note in ctx.coverage.notes if "alone as a block, fitted" in note]
    return float(note.rpartition(" ")[2])


def test_a_block_is_tried_after_a_fit_that_tells_it_from_guessing(
    tmp_path, monkeypatch, record_property
):
    fitted = tried_alone(tmp_path)
    monkeypatch.setattr(blocks, "_STEPS", 10)
    monkeypatch.setattr(blocks, "_RATE", 1e-3)
    hardly = tried_alone(tmp_path)
    record_property(
        "figure", f"inverted residual alone, squared error: {hardly} as it begins, {fitted} fitted"
    )
    assert fitted < 0.3 * hardly


def test_a_name_of_no_convolution_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(
        NothingChanged, match=r"'other\*' in layers matches no .* 'head.weight', 'mid"
    ):
        rewritten(net(), tmp_path, layers=("mid*", "other*"))


def test_a_block_whose_fit_diverges_is_taken_as_lost_and_not_chosen(tmp_path, monkeypatch):
    model, graph = jobs.load("residual_cnn", tmp_path)
    whole, lost = blocks._alone, "weight_10"

    def alone(graph, candidate, *rest):
        if candidate.name == lost:
            raise Diverged("the loss is nan")
        return whole(graph, candidate, *rest)

    monkeypatch.setattr(blocks, "_alone", alone)
    ctx = jobs.context_of(graph.clone(), tmp_path, jobs.dataset_of(model))
    passes.apply(graph, RewriteBlocks(block="separable", target={"macs": 0.7}, samples=8), ctx)
    assert f"'{lost}' alone as a block, fitted: taken as lost, since the loss is nan" in (
        ctx.coverage.notes
    )
    assert lost not in {touched.layer for touched in ctx.coverage.touched}
