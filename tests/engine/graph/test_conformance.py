"""The operators against the single-operator cases that come with onnx itself."""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir
import torch

from tests.engine.graph import conformance
from workers.engine import errors
from workers.engine.graph import execute, ops, shapes, tensors

FLOOR = 1823
"""Cases that pass of the 1,884 in onnx 1.23; more is better, fewer is a regression."""


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


def _bind(graph, value, array):
    value.const_value = ir.Tensor(np.asarray(array), name=value.name)
    graph.model.graph.register_initializer(value)


def _bind_shapes(graph, arrays):
    """Make initializers of the inputs that are shapes, axes or bounds, as they are in networks; answers the others' sizes."""
    sizes = {}
    for value, array in zip(graph.inputs, arrays, strict=True):
        uses = [(ops.TABLE[ops.key(n.domain, n.op_type)], slot) for n, slot in value.uses()]
        if uses and all(slot in operator.host for operator, slot in uses):
            _bind(graph, value, array)
        else:
            sizes[value.name] = np.shape(array)
    return sizes


def test_shapes_on_the_meta_device_are_those_of_the_run():
    """A case may be beyond shape inference (its shapes depend on data), but never misjudged."""
    checked = 0
    for case in conformance.cases():
        if conformance.unknown(case):
            continue
        inputs, outputs = ([conformance.array(x) for x in data] for data in case.data_sets[0])
        tensors = [*inputs, *outputs]
        if not all(
            isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind != "O" for x in tensors
        ):
            continue
        try:
            graph = conformance.graph(case)
            found = shapes.infer(graph, _bind_shapes(graph, inputs))
        except errors.Unsupported:
            continue
        for value, want in zip(graph.outputs, outputs, strict=True):
            assert found[value.name] == np.shape(want), case.name
        checked += 1
    assert checked >= 1756


def test_gradients_reach_the_weights_of_every_operator_that_has_some():
    """Their operands are bound as weights, as in networks; each must get a finite gradient."""
    trained = set()
    for case in conformance.cases():
        operator = ops.TABLE.get(conformance.operator(case))
        if len(case.model.graph.node) != 1 or operator is None or not operator.weights:
            continue
        graph = conformance.graph(case)
        inputs = dict(zip(graph.inputs, map(conformance.array, case.data_sets[0][0]), strict=True))
        for value, array in inputs.items():
            if any(slot in operator.weights for _, slot in value.uses()):
                _bind(graph, value, array)
        module = execute.as_module(graph)
        feeds = [tensors.borrow(array) for value, array in inputs.items() if value in graph.inputs]
        outputs = [y for y in module(*feeds) if y.requires_grad]
        if outputs:
            torch.stack([y.float().sum() for y in outputs]).sum().backward()
            grads = [w.grad for w in module.weights.values()]
            assert all(g is not None and torch.isfinite(g).all() for g in grads), case.name
            trained.add(operator.name)
    assert trained == {name for name, operator in ops.TABLE.items() if operator.weights} - {
        name for name in ops.TABLE if conformance.is_microsofts(name)
    }
