"""Which layers a step may rewrite, and what the others are left alone for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelpress.spec.step import Step
from workers.engine.context import Context
from workers.engine.errors import BadModel, NothingChanged
from workers.engine.graph import Graph, match
from workers.engine.passes import _nothing
from workers.engine.passes.rewrite._decomposition import Decomposition, Rank


@dataclass(frozen=True)
class Subject:
    """A weight, and the layers that multiply by it."""

    layers: tuple[match.Layer, ...]
    weight: npt.NDArray[np.float32]
    """[outputs, inputs, *kernel]."""

    @property
    def name(self) -> str:
        """Of the weight."""
        return self.layers[0].weight

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes of a convolution's window; none of a matrix."""
        return self.weight.shape[2:]

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape as it is in the graph."""
        shape = self.weight.shape
        return shape if self.layers[0].out_axis == 0 else shape[::-1]

    @property
    def outputs(self) -> list[str]:
        """Names of what the layers answer, which stay when they are rewritten."""
        return [layer.node.outputs[0].name or "" for layer in self.layers]

    def restored(self, product: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """[outputs, inputs, *kernel] as the layers read it."""
        turned = product if self.layers[0].out_axis == 0 else product.T
        return np.ascontiguousarray(turned, np.float32)


@dataclass(frozen=True)
class Candidate:
    """A layer that may be rewritten."""

    subject: Subject
    decomposition: Decomposition
    ranks: tuple[Rank, ...]
    """Those that may be chosen; each saves something."""
    is_settled: bool = False
    """Whether the recipe says the rank of this layer, so that it can't stay as it is either."""


def find(
    graph: Graph, step: Step, ctx: Context, *, convolutions_only: bool = False
) -> list[Subject]:
    """Those that can be rewritten, in order; the others are reported with the reason.

    Raises:
        BadModel: a weight is not finite.
    """
    found = []
    for users in map(tuple, match.by_weight(graph).values()):
        reason = _why_not(graph, users, step)
        if not reason and convolutions_only and users[0].kind != "Conv":
            reason = "it is no convolution"
        if reason:
            ctx.skipped(users[0].weight, reason)
        else:
            found.append(_subject(graph, users))
    for name, reason in match.not_layers(graph).items():
        ctx.skipped(name, reason)
    return found


def nothing(step: Step, ctx: Context) -> NothingChanged:
    """What to raise where no layer is rewritten."""
    return _nothing.found(f"{step.kind} rewrote no layer", step, ctx)


def _subject(graph: Graph, users: tuple[match.Layer, ...]) -> Subject:
    weight = graph.weight(users[0].weight)
    if not np.isfinite(weight).all():
        raise BadModel(
            f"weight '{users[0].weight}' has values that are not finite",
            layer=users[0].weight,
            hint="train the model anew, or exclude the layer",
        )
    return Subject(users, weight if users[0].out_axis == 0 else weight.T)


def _why_not(graph: Graph, users: tuple[match.Layer, ...], step: Step) -> str:
    first = users[0]
    value = graph.initializers[first.weight]
    if any(step.excludes(user.weight, user.name) for user in users):
        return "excluded by the recipe"
    if first.kind == "ConvTranspose":
        return "ConvTranspose is not rewritten"
    if first.kind == "Conv" and first.node.attributes.get_int("group", 1) > 1:
        return "its channels are in groups, each a small layer already"
    if graph.weight(first.weight).dtype != np.float32:
        return f"its weight is {graph.weight(first.weight).dtype}, only float32 is rewritten"
    alike = {(user.kind, user.out_axis) for user in users}
    if len(alike) > 1 or {node for node, _ in value.uses()} != {user.node for user in users}:
        return "its weight is read elsewhere too, in another way"
    return "its weight is an output of the network" if value.is_graph_output() else ""
