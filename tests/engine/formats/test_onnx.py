"""Models go in and out without loss."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.engine import nets
from workers.engine import errors, formats
from workers.engine.formats import onnx as onnx_format
from workers.engine.graph import execute


@pytest.mark.parametrize("name", nets.NETS)
def test_what_is_saved_computes_the_same_and_has_the_same_bytes_each_time(name, tmp_path):
    model = nets.NETS[name](0)
    first, second, third = (tmp_path / f"{n}.onnx" for n in ("first", "second", "third"))
    first.write_bytes(model.SerializeToString())
    formats.save(formats.load(first), second)
    formats.save(formats.load(second), third)
    assert second.read_bytes() == third.read_bytes()
    feeds = nets.feeds(model, batch=3)
    want, got = (ort.InferenceSession(path).run(None, feeds)[0] for path in (first, third))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_the_batch_stays_dynamic(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(nets.vision_transformer().SerializeToString())
    formats.save(formats.load(path), path)
    saved = onnx.load(path)
    assert saved.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_graph_of_many_bytes_keeps_its_weights_in_a_second_file(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(nets.plain_cnn().SerializeToString())
    graph, large = formats.load(path), tmp_path / "large.onnx"
    onnx_format.save(graph, large, inline_bytes=1000)
    assert (tmp_path / "large.onnx.data").stat().st_size > large.stat().st_size / 2
    feeds = nets.feeds(nets.plain_cnn())
    want = execute.run(graph, feeds)["logits"]
    np.testing.assert_array_equal(execute.run(formats.load(large), feeds)["logits"], want)
    got = ort.InferenceSession(large).run(None, feeds)[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    formats.save(formats.load(large), tmp_path / "whole.onnx")
    assert not onnx.external_data_helper.uses_external_data(
        onnx.load(tmp_path / "whole.onnx", load_external_data=False).graph.initializer[0]
    )
    onnx_format.save(graph, tmp_path / "other.onnx", inline_bytes=1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "large.onnx",
        "large.onnx.data",
        "net.onnx",
        "other.onnx",
        "other.onnx.data",
        "whole.onnx",
    ]


def test_an_inspection_tells_what_is_in_a_model(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(nets.plain_cnn().SerializeToString())
    found = formats.inspect(path)
    assert found.inputs[0].model_dump() == {
        "name": "image",
        "dtype": "float32",
        "shape": ("batch", 1, 8, 8),
    }
    assert found.outputs[0].shape == ("batch", 10)
    assert found.operators["Conv"] == 2
    assert found.macs == 31552
    assert found.opset == 17
    assert found.producer == "nets"


def test_constants_in_nodes_become_initializers(tmp_path):
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32))
    nodes = [
        helper.make_node("Constant", [], ["w"], name="c", value=weight),
        helper.make_node("Constant", [], ["shape"], name="s", value_ints=[-1, 3]),
        helper.make_node("MatMul", ["x", "w"], ["m"], name="m"),
        helper.make_node("Reshape", ["m", "shape"], ["y"], name="r"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    loaded = formats.load(path)
    assert [node.op_type for node in loaded.nodes] == ["MatMul", "Reshape"]
    assert loaded.is_parameter("w")


def test_nodes_without_names_get_some_that_no_other_bears_in_branches_too(tmp_path):
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[n, 4] x, bool c) => (float[n, 4] y) {
        f = If(c) <
            then_branch = yes () => (float[n, 4] t) { i = Relu(x) t = Neg(i) },
            else_branch = no () => (float[n, 4] e) { e = Tanh(x) }
        >
        y = Relu(f)
    }"""
    path = tmp_path / "net.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    graph = formats.load(path).model.graph
    names = [node.name for node in ir.traversal.RecursiveGraphIterator(graph)]
    assert len(set(names)) == 5


def test_a_path_may_be_text(tmp_path):
    path = str(tmp_path / "net.onnx")
    onnx.save(nets.mlp(), path)
    assert formats.load(path).nodes


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        formats.load(tmp_path / "nothing.onnx")


def test_opaque_text_is_refused(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_text('ir_version: 8 graph { name: "g" }')
    with pytest.raises(errors.BadModel):
        formats.load(path)
