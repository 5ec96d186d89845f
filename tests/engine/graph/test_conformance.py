"""The operators against the single-operator cases that come with onnx itself."""

from __future__ import annotations

import sys

import numpy as np

from tests.engine.graph import conformance
from workers.engine import errors
from workers.engine.graph import shapes

FLOOR = 1823
"""Cases that pass of the 1,884 in onnx 1.23; more is better, fewer is a regression."""

RANDOM = ("bernoulli", "training_dropout")
"""Cases whose expected numbers are numpy's random ones."""


def test_onnxs_own_cases(record_property):
    found = conformance.score()
    passed, count = found.passed.total(), found.cases.total()
    score = f"ONNX conformance: {passed:,} of {count:,} single-operator cases pass"
    record_property("figure", score)
    for names in found.failed.values():
        sys.stdout.write("\n".join([*names, ""]))
    assert passed >= FLOOR


def test_each_operator_that_is_out_has_a_reason_and_each_reason_is_true():
    assert sorted(conformance.score().failed) == sorted(conformance.OUT)


def test_the_page_carries_the_score():
    """Refresh it with python -m tests.engine.graph.conformance."""
    assert conformance.table(conformance.score()) in conformance.PAGE.read_text()


def test_shapes_on_the_meta_device_are_those_of_the_run():
    """A case may be beyond shape inference (its shapes depend on data), but never misjudged."""
    checked = 0
    for case in conformance.cases():
        if conformance.unknown(case) or any(r in case.name for r in RANDOM):
            continue
        inputs, outputs = ([conformance.array(x) for x in data] for data in case.data_sets[0])
        tensors = [*inputs, *outputs]
        if not all(
            isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind != "O" for x in tensors
        ):
            continue
        try:
            graph = conformance.graph(case)
            names = [value.name for value in graph.inputs]
            given = {n: np.shape(x) for n, x in zip(names, inputs, strict=True)}
            found = shapes.infer(graph, given)
        except errors.Unsupported:
            continue
        for value, want in zip(graph.outputs, outputs, strict=True):
            assert found[value.name] == np.shape(want), case.name
        checked += 1
    assert checked > 1500
