"""What each layer that a step changed costs the network when it alone is changed.

    error(layer) = ||y^ - y|| / ||y||        y: outputs before the step; y^: with this layer as the step left it, all others as before

Each such network is put together from the two graphs (graph/splice.py), written and run by ONNX Runtime on some of the samples of the
eval split: codes, scales, roundings of the layer's inputs, its bias and the BatchNormalization behind it are those of the exported file.
Where shapes of layers hang together, as those of channels do, the step hands over such networks itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from modelpress.spec.report import Effect, LayerError, Quality
from workers.engine import data, formats
from workers.engine.errors import EngineError
from workers.engine.formats import upgrade
from workers.engine.graph import Graph, shapes, splice
from workers.engine.measure import quality
from workers.engine.measure.quality import Reference

MAX_LAYERS, MIN_LAYERS = 24, 4
MAX_SAMPLES, MIN_SAMPLES = 256, 32
MAX_MACS = 4e11
"""Of all runs together: some seconds."""
MAX_BYTES = 4e9
"""Of all files that are written."""


@dataclass(frozen=True)
class Bounds:
    """How much is measured."""

    layers: int
    samples: int

    @classmethod
    def of(cls, macs: int, file_bytes: int, samples: int) -> Bounds:
        """For a network of so many multiply-accumulates and bytes: few samples before few layers."""
        budget = MAX_MACS / max(macs, 1)
        taken = min(samples, max(MIN_SAMPLES, min(MAX_SAMPLES, int(budget / MAX_LAYERS))))
        layers = int(min(budget / max(taken, 1), MAX_BYTES / max(file_bytes, 1)))
        return cls(max(MIN_LAYERS, min(MAX_LAYERS, layers)), taken)


@dataclass(frozen=True)
class Changed:
    """A network before and after a step."""

    before: Graph
    """In the form in which its layers compare with those of `after`."""
    after: Graph
    exported: Path
    """The file of `after`."""
    touched: Sequence[str]
    """Weights or nodes that the step changed, by name."""
    networks: Mapping[str, Callable[[], Graph] | str] = field(default_factory=dict)
    """`before` with one layer changed, as the step hands it over, or why there is none; empty where it is to be put together."""


def measure(
    changed: Changed,
    samples: data.Dataset,
    work: Path,
    *,
    bounds: Bounds,
    threads: int,
    report: Callable[[float], None] = quality.silent,
) -> tuple[Effect, tuple[LayerError, ...]]:
    """What the step did to the network as it was before, and what each of its largest layers does alone.

    Raises:
        EngineError: the network before or after the step can't be run.
    """
    few = samples.take(bounds.samples, 0)
    bench = _Bench(changed, few, work / "alone", threads)
    before, reference = bench.before()
    after = quality.measure(changed.exported, few, reference, threads=threads)
    networks, left_out = bench.networks(changed)
    found: list[LayerError] = []
    for number, (name, make) in enumerate(list(networks.items())[: bounds.layers], start=1):
        found.append(bench.alone(name, make, reference))
        report(number / min(len(networks), bounds.layers))
    left_out |= dict.fromkeys(list(networks)[bounds.layers :], _TOO_MANY)
    rest = [_unmeasured(changed.before, name, reason) for name, reason in left_out.items()]
    return _effect(before, after), (*_with_shares(found), *rest)


_TOO_MANY = "not measured alone: one of many, and others are larger"


class _Bench:
    """Builds and runs networks of which one layer is changed."""

    def __init__(self, changed: Changed, samples: data.Dataset, folder: Path, threads: int) -> None:
        self._graph, self._after = changed.before.clone(), changed.after
        self._samples, self._folder, self._threads = samples, folder, threads
        folder.mkdir(parents=True, exist_ok=True)
        upgrade.upgrade(self._graph.model, self._after.opset)
        model, newer = self._graph.model, self._after.model
        model.graph.opset_imports.update(newer.graph.opset_imports)
        model.ir_version = max(model.ir_version or 0, newer.ir_version or 0)
        given = {name: array.shape for name, array in samples.batch([0]).items()}
        inputs = shapes.example_shapes(self._graph, given=given)
        self._shapes = shapes.infer(self._graph, inputs)
        self._new_shapes = shapes.infer(self._after, inputs)

    def before(self) -> tuple[Quality, Reference]:
        """How the network did before the step."""
        path = self._write(self._graph)
        kept = self._folder / "outputs"
        return quality.baseline(path, self._samples, kept, threads=self._threads)

    def networks(self, changed: Changed) -> tuple[dict[str, Callable[[], Graph]], dict[str, str]]:
        """Networks with one layer changed, that of the largest first; and why others have none."""
        if not changed.networks:
            return {n: partial(self._spliced, nodes) for n, nodes in _layers(changed).items()}, {}
        ordered = sorted(changed.networks, key=lambda name: -_elements(changed.before, name))
        given = {name: changed.networks[name] for name in ordered}
        made = {name: make for name, make in given.items() if not isinstance(make, str)}
        return made, {name: why for name, why in given.items() if isinstance(why, str)}

    def alone(self, name: str, make: Callable[[], Graph], reference: Reference) -> LayerError:
        """How it does with one layer changed."""
        try:
            path = self._write(make())
            found = quality.measure(path, self._samples, reference, threads=self._threads)
        except EngineError as error:
            return _unmeasured(self._graph, name, f"not measured alone: {error.message}")
        return LayerError(
            layer=name,
            elements=_elements(self._graph, name),
            relative_l2_difference=found.relative_l2_difference,
            agreement=found.agreement,
            accuracy=found.accuracy,
        )

    def _spliced(self, nodes: Sequence[str]) -> Graph:
        network = self._graph.clone()
        splice.splice(network, self._after, nodes, self._shapes, self._new_shapes)
        return network

    def _write(self, network: Graph) -> Path:
        for file in self._folder.glob("network.onnx*"):
            file.unlink()
        path = self._folder / "network.onnx"
        formats.save(network, path)
        return path


def _layers(changed: Changed) -> dict[str, list[str]]:
    """Nodes of each touched weight or node, the largest first; what belongs to a larger one is left out."""
    graph = changed.before
    ordered = sorted(dict.fromkeys(changed.touched), key=lambda name: -_elements(graph, name))
    found: dict[str, list[str]] = {}
    for name in ordered:
        nodes = [node for read in _nodes(graph, name) for node in (read, *_norm(read, changed))]
        names = [node.name or "" for node in nodes]
        known = {node for others in found.values() for node in others}
        if names and not known & set(names):
            found[name] = names
    return found


def _nodes(graph: Graph, name: str) -> list[ir.Node]:
    """Those that read an initializer, or the one of this name."""
    value = graph.initializers.get(name)
    if value is None:
        return [node for node in graph.nodes if node.name == name]
    return list(value.consumers())


def _norm(node: ir.Node, changed: Changed) -> list[ir.Node]:
    """The BatchNormalization behind a layer, where the step trained or measured it anew for what the layer makes now, or replaced both."""
    users = list(node.outputs[0].consumers())
    if len(users) != 1 or users[0].op_type != "BatchNormalization":
        return []
    names = [value.name or "" for value in users[0].inputs[1:] if value is not None]
    both = [
        n for n in names if n in changed.before.initializers and n in changed.after.initializers
    ]
    same = bool(both) and all(
        np.array_equal(changed.before.weight(n), changed.after.weight(n)) for n in both
    )
    return [] if same else users


def _elements(graph: Graph, name: str) -> int:
    value = graph.initializers.get(name)
    return 0 if value is None or value.const_value is None else value.const_value.size


def _unmeasured(graph: Graph, name: str, reason: str) -> LayerError:
    return LayerError(layer=name, elements=_elements(graph, name), reason=reason)


def _effect(before: Quality, after: Quality) -> Effect:
    return Effect(
        samples=after.samples,
        accuracy_before=before.accuracy,
        accuracy=after.accuracy,
        agreement=after.agreement,
        relative_l2_difference=after.relative_l2_difference,
    )


def _with_shares(found: Sequence[LayerError]) -> Iterator[LayerError]:
    """The same with the share of each in the sum of squared errors."""
    total = sum((layer.relative_l2_difference or 0.0) ** 2 for layer in found)
    for layer in found:
        error = layer.relative_l2_difference
        share = None if error is None or not total else error**2 / total
        yield layer.model_copy(update={"share": share})
