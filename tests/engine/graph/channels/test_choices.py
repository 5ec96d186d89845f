"""What the step prune.channels says of choices, and how it fails where nothing can go."""

from __future__ import annotations

import onnx
import pytest

from modelpress.spec.prune import PruneChannels
from tests.engine import jobs
from tests.engine.graph.channels import image_nets, token_nets
from tests.engine.graph.channels.test_exact import loaded
from tests.engine.nets import Builder
from workers.engine import passes
from workers.engine.errors import NothingChanged


def prune(model, tmp_path, **options):
    graph = loaded(model, tmp_path)
    ctx = jobs.context_of(graph, tmp_path, None)
    return passes.apply(graph, PruneChannels(**{"fraction": 0.5, **options}), ctx), ctx


@pytest.mark.parametrize(
    ("choice", "heads", "size"), [("heads", 2, 6), ("width", 4, 3), ("both", 2, 3)]
)
def test_the_recipe_chooses_heads_their_width_or_both(choice, heads, size, tmp_path):
    graph, _ = prune(token_nets.attention_separate(), tmp_path, attention=choice)
    reshaped = [n.inputs[1].const_value.numpy() for n in graph.nodes if n.op_type == "Reshape"]
    assert [list(sizes[-2:]) for sizes in reshaped[:3]] == [[heads, size]] * 3


def test_one_node_of_attention_is_told_how_many_heads_are_left(tmp_path):
    model = token_nets.attention_operator(packed=True, keys=2)
    graph, _ = prune(model, tmp_path, attention="heads")
    node = next(n for n in graph.nodes if n.op_type == "Attention")
    assert node.attributes["q_num_heads"].as_int() == 2
    assert node.attributes["kv_num_heads"].as_int() == 1
    assert "scale" not in node.attributes


def test_one_node_of_attention_keeps_the_scale_it_had(tmp_path):
    graph, _ = prune(token_nets.attention_operator(packed=True), tmp_path, attention="width")
    node = next(n for n in graph.nodes if n.op_type == "Attention")
    assert node.attributes["scale"].as_float() == pytest.approx(token_nets.SIZE**-0.5)


def test_of_heads_that_are_fewer_and_narrower_the_scale_stays(tmp_path):
    model = token_nets.attention_operator(packed=True, keys=2)
    graph, ctx = prune(model, tmp_path, attention="both")
    node = next(n for n in graph.nodes if n.op_type == "Attention")
    assert node.attributes["q_num_heads"].as_int() == 2
    assert node.attributes["kv_num_heads"].as_int() == 1
    assert node.attributes["scale"].as_float() == pytest.approx(token_nets.SIZE**-0.5)
    assert produced(graph)[1:4] == [2 * 3, 3, 3]
    assert any(note.startswith("15 of 30 channels that may go") for note in ctx.coverage.notes)


def produced(graph) -> list[int]:
    """How many channels each product with a weight makes."""
    layers = (node.inputs[1] for node in graph.nodes if node.op_type == "MatMul")
    return [value.const_value.shape[1] for value in layers if value.const_value is not None]


def test_heads_and_their_width_together_keep_a_multiple(tmp_path):
    """Of places in a head 4 are kept, as if one head was left: 2 heads of 3 would be 6 channels."""
    model = token_nets.attention_separate()
    graph, _ = prune(model, tmp_path, attention="both", round_to=4)
    assert produced(graph)[1:4] == [2 * 4] * 3


@pytest.mark.parametrize("choice", ["heads", "width", "both"])
def test_a_choice_for_attention_without_any_is_noted(choice, tmp_path):
    _, ctx = prune(image_nets.residual_chain(), tmp_path, attention=choice)
    assert any(
        f"attention = '{choice}' has no effect" in note and "heads" in note
        for note in ctx.coverage.notes
    )


def test_nothing_is_noted_where_attention_is_left_to_the_step(tmp_path):
    _, ctx = prune(image_nets.residual_chain(), tmp_path)
    assert not any("attention" in note for note in ctx.coverage.notes)


def test_a_scale_that_is_written_down_stays(tmp_path):
    model = token_nets.attention_operator(packed=True)
    node = next(n for n in model.graph.node if n.op_type == "Attention")
    node.attribute.append(onnx.helper.make_attribute("scale", 0.25))
    graph, _ = prune(model, tmp_path, attention="width")
    assert next(
        n.attributes["scale"].as_float() for n in graph.nodes if n.op_type == "Attention"
    ) == pytest.approx(0.25)


def test_statistics_over_fewer_channels_are_noted(tmp_path):
    _, ctx = prune(token_nets.layer_normalization(), tmp_path)
    assert any(
        "LayerNormalization_" in note and "over 8 of 16" in note for note in ctx.coverage.notes
    )


def test_statistics_that_are_kept_keep_their_channels(tmp_path):
    model = token_nets.layer_normalization()
    graph, ctx = prune(model, tmp_path, normalized="keep")
    scale = next(n.inputs[1].name for n in graph.nodes if n.op_type == "LayerNormalization")
    assert graph.weight(scale).shape == (token_nets.WIDTH,)
    assert not any("over fewer channels" in note for note in ctx.coverage.notes)
    assert any("has statistics over it, which are kept" in note for note in ctx.coverage.notes)


def one_layer(after: str, **attributes) -> onnx.ModelProto:
    """A convolution, and an operator that needs its channels as they are."""
    b = Builder(0, opset=21)
    x = b.op(after, b.conv("image", 2, 6), **attributes)
    return b.model(image_nets.IMAGE, x, ("batch", 6, 8, 8))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: one_layer("Relu"), "it is output 'logits' of the network"),
        (lambda: one_layer("Softmax", axis=1), "Softmax_.* weighs its channels"),
        (lambda: one_layer("LRN", size=3), "LRN_.* depends on the place"),
        (lambda: one_layer("Trilu"), "it is output|has no rule"),
    ],
)
def test_where_nothing_can_go_the_step_fails_with_the_reasons(model, reason, tmp_path):
    with pytest.raises(NothingChanged, match=f"found no channel that can go.*{reason}"):
        prune(model(), tmp_path)


def test_a_network_without_weights_has_no_channels(tmp_path):
    b = Builder(0)
    model = b.model(image_nets.IMAGE, b.op("Relu", "image"), ("batch", 2, 8, 8))
    with pytest.raises(NothingChanged, match="no convolution or matrix product"):
        prune(model, tmp_path)


@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["channel_shuffle", "chunks", "slices", "gathered", "lstm"])
def test_no_layer_is_left_without_channels(name, fraction, tmp_path):
    model = {**image_nets.NETS, **token_nets.NETS}[name]()
    graph, _ = prune(model, tmp_path, fraction=fraction, max_layer_fraction=0.995)
    assert all(0 not in weight.shape for weight in graph.parameters().values())


def test_a_second_step_takes_the_other_of_heads_and_width(tmp_path):
    graph, _ = prune(token_nets.attention_separate(), tmp_path, attention="heads")
    step = PruneChannels(fraction=0.5, attention="width")
    graph = passes.apply(graph, step, jobs.context_of(graph, tmp_path, None))
    first = next(n.inputs[1].const_value.numpy() for n in graph.nodes if n.op_type == "Reshape")
    assert list(first[-2:]) == [2, 3]
