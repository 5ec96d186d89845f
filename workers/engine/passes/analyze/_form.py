"""The network in the forms that steps bring it into before they compress layers, with the layers found there.

plain     as pruning takes it: weights turned as layers read them, or computed once
folded    as quantization takes it: BatchNormalization multiplied into the layers before
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from modelpress.spec.analyze import AnalyzeSensitivity
from modelpress.spec.prune import PruneChannels
from workers.engine.context import Context
from workers.engine.graph import Graph, channels, edit, execute, match, shapes
from workers.engine.graph.channels.plan import Family, Plan
from workers.engine.passes import _constants, _settle, _weights
from workers.engine.passes._matrix import Matrix
from workers.engine.passes.prune import _importance
from workers.engine.passes.quantize import _prepare

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Subject:
    """What is compressed alone: the weight of a layer, or channels that go together."""

    name: str
    """Of the weight; of channels, that of the first layer that makes them."""
    joined: tuple[str, ...] = ()
    """Other layers that make the same channels."""
    users: tuple[match.Layer, ...] = ()
    """Nodes that multiply by the weight."""
    family: Family | None = None


@dataclass(frozen=True)
class Form:
    """A graph of its own, what is in it, and a module that runs it."""

    graph: Graph
    shapes: Mapping[str, Sequence[int]]
    """Of the inputs, for one sample."""
    step: AnalyzeSensitivity
    ctx: Context
    skipped: dict[str, str] = field(default_factory=dict)
    """Weights that are no subjects, with the reason."""

    @cached_property
    def module(self) -> execute.GraphModule:
        return execute.as_module(self.graph).to(self.ctx.device).eval()

    @cached_property
    def macs(self) -> dict[str, int]:
        """Multiply-accumulates by node."""
        return shapes.macs(self.graph, self.shapes)

    @cached_property
    def layers(self) -> list[Subject]:
        """The weights of all layers."""
        self.skipped.update(match.not_layers(self.graph))
        users = match.by_weight(self.graph)
        found = [Subject(name, users=tuple(of)) for name, of in users.items()]
        return [subject for subject in found if self._is_usable(subject)]

    @cached_property
    def families(self) -> list[Subject]:
        """Channels that go together, where layers that are subjects make them."""
        outputs = {(layer.weight, layer.out_axis) for layer in match.layers(self.graph)}
        known = {subject.name for subject in self.layers}
        found: dict[str, Subject] = {}
        for family in self.plan.families:
            makers = [n for n, axis in family.axes if (n, axis) in outputs and n in known]
            first = next((name for name in makers if name not in found), None)
            if first is not None and not any(self.step.excludes(n) for n, _ in family.axes):
                others = tuple(name for name in dict.fromkeys(makers) if name != first)
                found[first] = Subject(first, others, family=family)
            elif makers:
                self.ctx.note(
                    f"channels: a part of '{makers[0]}' was not measured: it is excluded, or the layer's name stands for another part"
                )
        return list(found.values())

    @cached_property
    def plan(self) -> Plan:
        return channels.plan.make(self.graph, self.shapes)

    @cached_property
    def scores(self) -> _importance.Scores:
        """What channels are worth, as prune.channels asks where nobody says otherwise."""
        return _importance.scores(self.graph, self.plan, PruneChannels(fraction=0.5), self.ctx)

    def weight(self, subject: Subject) -> Array:
        return self.graph.weight(subject.name)

    def matrix(self, subject: Subject) -> Matrix:
        """How its first user reads the weight."""
        return Matrix.of(self.graph, subject.users[0])

    def macs_of(self, subject: Subject) -> int:
        """In the nodes that multiply by the weight."""
        return sum(self.macs.get(layer.name, 0) for layer in subject.users)

    def _is_usable(self, subject: Subject) -> bool:
        weight = self.weight(subject)
        if self.step.excludes(subject.name, *(layer.name for layer in subject.users)):
            self.skipped[subject.name] = "excluded by the recipe"
        elif weight.dtype != np.float32:
            self.skipped[subject.name] = f"its weight is {weight.dtype}, only float32 is measured"
        elif not np.isfinite(weight).all():
            self.skipped[subject.name] = "its weight has values that are not finite"
        elif math.prod(weight.shape) == 0:
            self.skipped[subject.name] = "its weight is empty"
        else:
            return True
        return False


def plain(
    graph: Graph, input_shapes: shapes.Shapes, step: AnalyzeSensitivity, ctx: Context
) -> Form:
    """As pruning takes it."""
    own = graph.clone()
    _weights.turn(own)
    _settle.weights(own, input_shapes)
    return Form(own, input_shapes, step, ctx)


def folded(
    graph: Graph, input_shapes: shapes.Shapes, step: AnalyzeSensitivity, ctx: Context
) -> Form:
    """As quantization takes it."""
    own = graph.clone()
    _prepare.drop_identities(own)
    _weights.turn(own, copy_shared=True)
    _constants.fold(own, input_shapes)
    edit.fold_batch_norm(own)
    _prepare.scale_gemms(own)
    return Form(own, input_shapes, step, ctx)
