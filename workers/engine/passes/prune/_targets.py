"""How many weights of which layers go: the sparsity or pattern of a step, and the layers that have a sparsity of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from modelpress.spec.prune import PruneMagnitude
from workers.engine.context import Context
from workers.engine.errors import NothingChanged
from workers.engine.graph import Graph
from workers.engine.graph.match import Layer
from workers.engine.passes.prune import _masks
from workers.engine.passes.prune._masks import Array, Mask


@dataclass(frozen=True)
class Targets:
    """Which layers are pruned, by the name of their weight."""

    layers: Mapping[str, Layer]
    """All of them."""
    own: Mapping[str, float]
    """Those with a sparsity of their own."""
    step: PruneMagnitude

    @property
    def others(self) -> list[str]:
        """Those that the step's sparsity or pattern is for."""
        return [name for name in self.layers if name not in self.own]

    def grow(
        self,
        scores: Mapping[str, Array],
        pruned: Mapping[str, Mask],
        done: tuple[int, int],
        rng: np.random.Generator,
    ) -> dict[str, Mask]:
        """Masks after round `done` = (index, rounds), of which those of `pruned` are a part."""
        masks = dict(self._of_own(scores, pruned, done, rng))
        if self.step.pattern is not None:
            masks.update(self._of_pattern(scores, pruned, done, rng))
        elif self.others:
            masks.update(self._of_sparsity(scores, pruned, done, rng))
        return {name: masks[name] for name in self.layers}

    def _reached(self, final: float, done: tuple[int, int]) -> float:
        return _masks.sparsity_in_round(final, *done, self.step.schedule)

    def _of_own(
        self,
        scores: Mapping[str, Array],
        pruned: Mapping[str, Mask],
        done: tuple[int, int],
        rng: np.random.Generator,
    ) -> Iterator[tuple[str, Mask]]:
        for name, sparsity in self.own.items():
            reached = self._reached(sparsity, done)
            yield name, self._within(name, scores[name], pruned[name], reached, rng)

    def _of_pattern(
        self,
        scores: Mapping[str, Array],
        pruned: Mapping[str, Mask],
        done: tuple[int, int],
        rng: np.random.Generator,
    ) -> Iterator[tuple[str, Mask]]:
        kept, size = self.step.kept_of
        count = round(self._reached(1 - kept / size, done) * size)
        for name in self.others:
            axis = self.layers[name].in_axis
            yield (
                name,
                _masks.in_groups(scores[name], pruned[name], count, rng, axis=axis, size=size),
            )

    def _of_sparsity(
        self,
        scores: Mapping[str, Array],
        pruned: Mapping[str, Mask],
        done: tuple[int, int],
        rng: np.random.Generator,
    ) -> dict[str, Mask]:
        assert self.step.sparsity is not None, "the recipe was checked: there is one target"
        reached, names = self._reached(self.step.sparsity, done), self.others
        if self.step.ranked_in == "global":
            cap = self.step.max_layer_sparsity
            theirs = {name: scores[name] for name in names}
            return _masks.over_all(theirs, pruned, reached, rng, cap=cap)
        return {
            name: self._within(name, scores[name], pruned[name], reached, rng) for name in names
        }

    def _within(
        self, name: str, scores: Array, pruned: Mask, sparsity: float, rng: np.random.Generator
    ) -> Mask:
        if self.step.ranked_in == "row":
            axis = self.layers[name].out_axis
            return _masks.in_rows(scores, pruned, sparsity, rng, axis=axis)
        return _masks.in_layer(scores, pruned, sparsity, rng)


def choose(
    graph: Graph, layers: Mapping[str, Layer], step: PruneMagnitude, ctx: Context
) -> Targets:
    """Settles what happens to each layer; those that a pattern does not fit are reported with the reason.

    Raises:
        NothingChanged: an override names no layer, or no layer fits the pattern.
    """
    own = _overridden(layers, step)
    fitting = {name: layer for name, layer in layers.items() if name in own}
    for name, layer in layers.items():
        if name in own:
            continue
        if reason := _unfit(graph, layer, step):
            ctx.skipped(name, reason)
        else:
            fitting[name] = layer
    if not fitting:
        raise NothingChanged(
            f"no layer fits pattern {step.pattern}: none has inputs that are a multiple of {step.kept_of[1]}",
            hint="choose another pattern, or sparsity instead of pattern",
        )
    return Targets({name: layer for name, layer in layers.items() if name in fitting}, own, step)


def _overridden(layers: Mapping[str, Layer], step: PruneMagnitude) -> dict[str, float]:
    """The sparsity of each layer that has its own.

    Raises:
        NothingChanged: an override is the first match of no layer.
    """
    own: dict[str, float] = {}
    for override in step.overrides:
        matched = {
            name
            for name, layer in layers.items()
            if fnmatchcase(name, override.layers) or fnmatchcase(layer.name, override.layers)
        }
        if not matched - set(own):
            raise NothingChanged(_without_effect(override.layers, matched, layers))
        own.update({name: override.sparsity for name in matched if name not in own})
    return {name: own[name] for name in layers if name in own}


def _without_effect(pattern: str, matched: set[str], layers: Mapping[str, Layer]) -> str:
    if matched:
        return f"override '{pattern}' has no effect: earlier overrides match all its layers already"
    names = ", ".join(f"'{name}'" for name in list(layers)[:32])
    more = f" and {len(layers) - 32} more" if len(layers) > 32 else ""
    return f"override '{pattern}' matches no layer that is pruned; there are {names}{more}"


def _unfit(graph: Graph, layer: Layer, step: PruneMagnitude) -> str:
    """Why a pattern does not fit a layer; '' where it does."""
    if step.pattern is None:
        return ""
    inputs, size = graph.weight(layer.weight).shape[layer.in_axis], step.kept_of[1]
    if inputs % size:
        return f"its {inputs} inputs are no multiple of {size}, as pattern {step.pattern} needs"
    return ""
