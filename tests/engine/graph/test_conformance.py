"""The operators against the single-operator cases that come with onnx itself."""

from __future__ import annotations

import sys
import warnings
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.backend.test.loader import load_model_tests

from workers.engine import errors
from workers.engine.formats import limits, normal
from workers.engine.graph import Graph, execute, ops, shapes

FLOOR = 1706
"""Cases that pass of the 1,884 in onnx 1.23; more is better, fewer is a regression."""

RANDOM = ("bernoulli", "training_dropout")
"""Cases whose expected numbers are numpy's random ones."""


@pytest.fixture(scope="module")
def cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return load_model_tests(kind="node")


def _unknown(case):
    kinds = {ops.key(n.domain, n.op_type) for n in case.model.graph.node}
    return sorted(kind for kind in kinds if kind not in ops.TABLE and kind not in limits.CONVERTED)


def _graph(case):
    model = ir.from_proto(case.model)
    normal.normalise(model)
    return Graph(model)


def _array(value):
    return ir.from_proto(value).numpy() if isinstance(value, onnx.TensorProto) else value


def _agrees(got, want, case):
    if isinstance(want, list):
        return len(got) == len(want) and all(map(_agrees, got, want, [case] * len(want)))
    if want is None or got is None:
        return want is got
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    return np.allclose(
        got.astype(wide), want.astype(wide), case.rtol, max(case.atol, 1e-6), equal_nan=True
    )


def _passes(case):
    graph = _graph(case)
    for inputs, outputs in case.data_sets:
        names = [value.name for value in graph.inputs]
        got = execute.run(graph, dict(zip(names, map(_array, inputs), strict=True)))
        if not all(map(_agrees, got.values(), map(_array, outputs), [case] * len(outputs))):
            return False
    return True


def test_onnxs_own_cases(cases, record_property):
    missing, wrong, passed = Counter(), [], 0
    for case in cases:
        if unknown := _unknown(case):
            missing.update(unknown)
            continue
        try:
            good = _passes(case)
        except Exception as error:  # every kind of failure is a wrong answer here
            good, case.name = False, f"{case.name} ({type(error).__name__}: {str(error)[:80]})"
        passed += good
        wrong += [] if good else [case.name]
    score = f"ONNX conformance: {passed} of {len(cases)} single-operator cases pass"
    record_property("figure", score)
    sys.stdout.write(f"operators we lack: {dict(missing.most_common())}\n")
    sys.stdout.write("\n".join(["wrong:", *wrong]))
    assert passed >= FLOOR


def test_shapes_on_the_meta_device_are_those_of_the_run(cases):
    """A case may be beyond shape inference (its shapes depend on data), but never misjudged."""
    checked = 0
    for case in cases:
        if _unknown(case) or any(r in case.name for r in RANDOM):
            continue
        inputs, outputs = ([_array(x) for x in data] for data in case.data_sets[0])
        tensors = [*inputs, *outputs]
        if not all(
            isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind != "O" for x in tensors
        ):
            continue
        try:
            graph = _graph(case)
            names = [value.name for value in graph.inputs]
            given = {n: np.shape(x) for n, x in zip(names, inputs, strict=True)}
            found = shapes.infer(graph, given)
        except errors.Unsupported:
            continue
        for value, want in zip(graph.outputs, outputs, strict=True):
            assert found[value.name] == np.shape(want), case.name
        checked += 1
    assert checked > 1000
