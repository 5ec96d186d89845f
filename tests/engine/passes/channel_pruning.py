"""Tiny nets whose channels are pruned, for tests."""

from __future__ import annotations

import onnxruntime

from modelpress.spec.prune import PruneChannels
from tests.engine import jobs, nets
from workers.engine import formats, passes


def load(net, tmp_path):
    """A tiny net by its name, or one that is given as a model."""
    if isinstance(net, str):
        return jobs.load(net, tmp_path)
    path = tmp_path / "net.onnx"
    path.write_bytes(net.SerializeToString())
    return net, formats.load(path)


def prune(net, tmp_path, *, seed=0, samples=48, change=None, **options):
    """The pruned graph and the context; `change` is done to the graph before."""
    model, graph = load(net, tmp_path)
    if change is not None:
        change(graph)
    step = PruneChannels(**options)
    train = jobs.dataset_of(model, samples) if step.needs_data else None
    ctx = jobs.context_of(graph.clone(), tmp_path, train, seed=seed)
    return passes.apply(graph, step, ctx), ctx


def answers(graph, model, tmp_path):
    """What ONNX Runtime answers to a graph's exported file."""
    formats.save(graph, tmp_path / "answers.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "answers.onnx")
    return session.run(["logits"], nets.feeds(model, 5, seed=3))[0]
