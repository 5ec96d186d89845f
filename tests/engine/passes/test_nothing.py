"""What is said where a step finds nothing to change."""

from __future__ import annotations

from modelpress.spec.rewrite import RewriteBlocks
from tests.engine import jobs
from workers.engine.passes import _nothing


def test_each_layer_is_named_once_with_the_reason_told_last(tmp_path):
    _, graph = jobs.load("plain_cnn", tmp_path)
    ctx = jobs.context_of(graph, tmp_path, None)
    for layer, reason in (("a", "it was kept"), ("b", "it is small"), ("a", "it has groups")):
        ctx.skipped(layer, reason)
    error = _nothing.found("rewrite.blocks rewrote no layer", RewriteBlocks(), ctx)
    assert error.message == "rewrite.blocks rewrote no layer (a: it has groups; b: it is small)"
    assert error.hint == "leave this step out for this model"


def test_ten_layers_are_named_and_no_more(tmp_path):
    _, graph = jobs.load("plain_cnn", tmp_path)
    ctx = jobs.context_of(graph, tmp_path, None)
    for number in range(11):
        ctx.skipped(f"layer{number}", "it is small")
    assert _nothing.reasons(ctx).count("it is small") == 10
    assert "layer10" not in _nothing.reasons(ctx)
