"""rewrite.clean: the same answers with fewer nodes, and a report of what went."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from modelpress.spec.rewrite import RewriteClean
from tests.engine import jobs, nets
from workers.engine import formats, passes
from workers.engine.errors import NothingChanged
from workers.engine.graph import execute

MESSY = """
    net (float[batch, 4, 6, 6] x) => (float[batch, 4, 6, 6] y)
    <float[4, 4, 3, 3] w, float[4] s, float[4] b, float[4] m>
    {
        v = Abs(m)
        [conv] c = Conv<pads = [1, 1, 1, 1]>(x, w)
        [norm] n = BatchNormalization(c, s, b, m, v)
        [first] r = Relu(n)
        [again] q = Relu(n)
        [pass] i = Identity(q)
        [unused] u = Sigmoid(r)
        y = Add(r, i)
    }
"""

BRANCHES = """
    net (float[batch, 4] x) => (float[batch, 4] y) <float[4, 4] w, float z>
    {
        s = ReduceSum<keepdims = 0>(x)
        c = Greater(s, z)
        f = If(c) <
            then_branch = yes () => (float[batch, 4] t) { i = Identity(x) t = Relu(i) },
            else_branch = no () => (float[batch, 4] e) { e = Tanh(x) }
        >
        y = MatMul(f, w)
    }
"""


def clean(text_or_net, tmp_path, **options):
    model = nets.NETS[text_or_net](0) if text_or_net in nets.NETS else jobs.text(text_or_net)
    onnx.save(model, tmp_path / "net.onnx")
    before = formats.load(tmp_path / "net.onnx")
    ctx = jobs.context_of(before.clone(), tmp_path, None)
    after = passes.apply(before.clone(), RewriteClean(**options), ctx)
    feeds = nets.feeds(model, 3)
    for name, wanted in execute.run(before, feeds).items():
        found = execute.run(after, feeds)[name]
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    return after, {touched.layer: touched.change for touched in ctx.coverage.touched}


def test_everything_superfluous_goes_and_is_told(tmp_path):
    after, gone = clean(MESSY, tmp_path)
    assert sorted(node.op_type for node in after.nodes) == ["Add", "Conv", "Relu"]
    assert "multiplied into the layer before it" in gone["norm"]
    assert "another node computes the same" in gone["again"]
    assert "it did nothing" in gone["pass"]
    assert "no output needs it" in gone["unused"]


def test_what_went_in_a_branch_is_told_too(tmp_path):
    after, gone = clean(BRANCHES, tmp_path)
    assert [node.op_type for node in after.nodes] == ["ReduceSum", "Greater", "If", "MatMul"]
    assert list(gone.values()) == ["Identity: it did nothing"]


def test_layers_keep_their_names(tmp_path):
    after, gone = clean(MESSY, tmp_path)
    assert {"conv", "first"} <= {node.name for node in after.nodes}
    assert "conv" not in gone


def test_normalization_stays_where_it_is_asked_to(tmp_path):
    after, _ = clean("plain_cnn", tmp_path, fold_batch_norm=False)
    assert sum(node.op_type == "BatchNormalization" for node in after.nodes) == 2


def test_equal_weights_stay_apart(tmp_path):
    twins = """
        net (float[batch, 4] x) => (float[batch, 4] y)
        <float[4, 4] a, float[4, 4] b> { p = MatMul(x, a) q = MatMul(x, b) i = Identity(q) y = Add(p, i) }
    """
    model = jobs.text(twins)
    arrays = {w.name: w for w in model.graph.initializer}
    arrays["b"].raw_data = arrays["a"].raw_data
    onnx.save(model, tmp_path / "twins.onnx")
    graph = formats.load(tmp_path / "twins.onnx")
    ctx = jobs.context_of(graph.clone(), tmp_path, None)
    after = passes.apply(graph, RewriteClean(), ctx)
    assert sorted(after.parameters()) == ["a", "b"]


def test_clean_network_is_refused(tmp_path):
    text = "net (float[batch, 4] x) => (float[batch, 4] y) <float[4, 4] w> { y = MatMul(x, w) }"
    with pytest.raises(NothingChanged, match="found nothing to take out of 1 nodes"):
        clean(text, tmp_path)
