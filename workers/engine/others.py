"""The other models of a job, by role; each is opened when a step first asks for it.

initial     the source model before it was trained: the same nodes with other weights
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from workers.engine import formats
from workers.engine.errors import BadModel
from workers.engine.graph import Graph

INITIAL = "initial"


class Models(Mapping[str, Graph]):
    """Graphs by role. What is given out belongs to the job: clone it before changing it.

    Opening raises as `formats.load`, and for role 'initial' as `initial`.
    """

    def __init__(self, files: Mapping[str, Path], source: Graph) -> None:
        self._files, self._source = dict(files), source
        self._opened: dict[str, Graph] = {}

    def __getitem__(self, role: str) -> Graph:
        if role not in self._opened:
            found = formats.load(self._files[role])
            self._opened[role] = initial(self._source, found) if role == INITIAL else found
        return self._opened[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def initial(source: Graph, found: Graph) -> Graph:
    """The source model with the weights of `found`, which is the same network before training.

    Weights are matched by where they enter the nodes: exporters store equal ones, such as biases that are all zero, once under one
    name. The result has the names of the source.

    Raises:
        BadModel: the nodes differ, or a weight has another shape or type.
    """
    result = source.clone()
    for name, value in _paired(source, found):
        _check_like(source.initializers[name], value)
        assert value.const_value is not None
        result.set_weight(name, value.const_value.numpy())
    return result


def _paired(source: Graph, found: Graph) -> Iterator[tuple[str, ir.Value]]:
    """For each initializer of the source, by name, what `found` has in its place. The nodes come in the same order."""
    ours, theirs = (
        list(ir.traversal.RecursiveGraphIterator(g.model.graph)) for g in (source, found)
    )
    if len(ours) != len(theirs):
        raise _different(f"it has {len(theirs)} nodes where the model has {len(ours)}")
    seen: set[str] = set()
    for index, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        _check_same(our, their, index)
        for value, other in zip(our.inputs, their.inputs, strict=True):
            name = value.name or "" if value is not None else ""
            if name in source.initializers and name not in seen:
                seen.add(name)
                assert other is not None
                yield name, other


def _check_same(our: ir.Node, their: ir.Node, index: int) -> None:
    what = f"node {index} of it is {their.op_type} '{their.name}', that of the model {our.op_type} '{our.name}'"
    if our.op_identifier() != their.op_identifier():
        raise _different(what, our.name)
    if [_is_weight(v) for v in our.inputs] != [_is_weight(v) for v in their.inputs]:
        raise _different(f"{what}, with weights as other inputs", our.name)


def _is_weight(value: ir.Value | None) -> bool | None:
    return None if value is None else value.const_value is not None


def _check_like(ours: ir.Value, theirs: ir.Value) -> None:
    a, b = ours.const_value, theirs.const_value
    assert a is not None
    assert b is not None
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        raise _different(
            f"weight '{ours.name}' is {a.dtype.name} {list(a.shape)}, there {b.dtype.name} {list(b.shape)}",
            ours.name,
        )


def _different(what: str, layer: str | None = None) -> BadModel:
    return BadModel(
        f"the initial model is not the same network as the model: {what}",
        layer=layer or "",
        hint="export both in the same way from the same code, the initial one before training",
    )
