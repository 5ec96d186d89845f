"""Edits keep a graph a graph, and what it computes."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from tests.engine import nets
from workers.engine import errors, formats
from workers.engine.graph import edit, execute, verify


def _load(name, tmp_path):
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(nets.NETS[name](0).SerializeToString())
    return formats.load(path)


def test_folding_batch_normalisation_changes_no_output(tmp_path):
    for name, count in {"plain_cnn": 2, "residual_cnn": 6, "depthwise_cnn": 4}.items():
        graph = _load(name, tmp_path)
        feeds = nets.feeds(nets.NETS[name](0))
        want = execute.run(graph, feeds)["logits"]
        assert len(edit.fold_batch_norm(graph)) == count
        assert "BatchNormalization" not in {node.op_type for node in graph.nodes}
        verify.verify(graph)
        formats.save(graph, tmp_path / "folded.onnx")
        got = ort.InferenceSession(tmp_path / "folded.onnx").run(None, feeds)[0]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_an_output_keeps_its_name_when_its_normalization_is_folded(tmp_path):
    """A network that ends in BatchNormalization answers by the same name, with the same shape."""
    graph = _load("plain_cnn", tmp_path)
    _end_in_normalization(graph)
    feeds = nets.feeds(nets.plain_cnn(0))
    (before,) = graph.outputs
    told = (before.name, before.dtype, before.shape)
    want = execute.run(graph, feeds)["logits"]
    assert "last_norm" in edit.fold_batch_norm(graph)
    verify.verify(graph)
    (after,) = graph.outputs
    assert (after.name, after.dtype, after.shape) == told
    np.testing.assert_allclose(execute.run(graph, feeds)["logits"], want, rtol=1e-4, atol=1e-5)


def _end_in_normalization(graph):
    """Puts one in the place of the Identity behind the last layer."""
    (old,) = graph.outputs
    drawn = np.random.default_rng(0).uniform(0.5, 2, (4, nets.CLASSES)).astype(np.float32)
    operands = [graph.add_weight(f"last_{i}", row) for i, row in enumerate(drawn)]
    end = old.producer()
    operands.insert(0, end.inputs[0])
    norm = edit.insert_after(graph, end, "BatchNormalization", operands, name="last_norm")
    edit.take_place(graph, old, norm.outputs[0])
    edit.remove_dead(graph)


def test_a_layer_that_others_read_is_not_folded(tmp_path):
    graph = _load("plain_cnn", tmp_path)
    conv = next(node for node in graph.nodes if node.op_type == "Conv")
    relu = edit.insert_after(graph, conv, "Relu", [conv.outputs[0]])
    graph.model.graph.outputs.append(relu.outputs[0])
    assert len(edit.fold_batch_norm(graph)) == 1


def test_a_node_is_inserted_and_its_value_redirected(tmp_path):
    graph = _load("mlp", tmp_path)
    feeds = nets.feeds(nets.mlp())
    want = execute.run(graph, feeds)["logits"]
    relu = next(node for node in graph.nodes if node.op_type == "Relu")
    value = relu.outputs[0]
    users = list(value.uses())
    node = edit.insert_after(graph, relu, "Neg", [value])
    for user, slot in users:
        user.replace_input_with(slot, node.outputs[0])
    verify.verify(graph)
    assert not np.allclose(execute.run(graph, feeds)["logits"], want)


def test_dead_nodes_and_weights_go(tmp_path):
    graph = _load("mlp", tmp_path)
    relu = next(node for node in graph.nodes if node.op_type == "Relu")
    number = graph.add_weight("extra", np.ones(48, np.float32))
    node = edit.insert_after(graph, relu, "Mul", [relu.outputs[0], number])
    assert set(edit.remove_dead(graph)) == {node.name, "extra"}
    verify.verify(graph)


def test_names_that_are_taken_get_a_number(tmp_path):
    graph = _load("mlp", tmp_path)
    first = graph.add_weight("scale", np.ones(1, np.float32))
    second = graph.add_weight("scale", np.ones(1, np.float32))
    assert (first.name, second.name) == ("scale", "scale_1")


def test_verify_names_what_is_wrong(tmp_path):
    graph = _load("mlp", tmp_path)
    node = graph.nodes[0]
    node.op_type = "Zorp"
    with pytest.raises(errors.Unsupported, match="Zorp"):
        verify.verify(graph)
    node.op_type = "Gemm"
    last = graph.nodes[-1]
    graph.model.graph.remove(last)
    graph.model.graph.insert_before(node, last)
    with pytest.raises(errors.BadModel, match="before it"):
        verify.verify(graph)
