"""The target of a step that removes channels: how much goes in each round, and whether it can be met."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from modelpress.spec.prune import PruneChannels
from workers.engine.context import Context
from workers.engine.errors import NothingChanged, Unsupported
from workers.engine.graph import Graph, channels
from workers.engine.graph.channels.plan import Plan, Removed
from workers.engine.graph.channels.surgery import Cost
from workers.engine.passes._recovery import Round
from workers.engine.passes.prune import _search
from workers.engine.passes.prune._clock import Clock
from workers.engine.passes.prune._search import Found, Timed, Timing
from workers.engine.passes.prune._selection import Candidates

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class Goal:
    """The ratio or fraction asked for, lowered to what is possible where the step says best_effort."""

    step: PruneChannels
    whole: Cost
    """Of the network before the step."""
    shapes: Shapes
    """Of its inputs."""
    limits: str
    """What keeps channels in place, for messages."""
    clock: Clock | None = None
    """Where the target is a ratio of times."""
    asked: float = field(init=False)

    def __post_init__(self) -> None:
        self.asked = self.step.target[1]

    @property
    def name(self) -> str:
        """The field of the step that holds it."""
        return self.step.target[0]

    def check(self, graph: Graph, candidates: Candidates, ctx: Context) -> None:
        """Settles before anything is trained whether the target can be met by the widest cut.

        Raises:
            Unsupported: it can't, and the step does not say best_effort.
        """
        if self.name == "fraction":
            return
        removed = candidates.choose(self.step.max_layer_fraction)
        reached = self._ratio(graph, candidates.plan)(removed)
        if self.clock is not None:
            reached = self._time(graph, candidates.plan, removed).ratio
        if reached < self.asked:
            self._give_way(reached, ctx)

    def find(self, graph: Graph, candidates: Candidates, now: Round, ctx: Context) -> Removed:
        """What goes in this round.

        Raises:
            NothingChanged: a fraction is too small for any channel.
            Unsupported: the ratio can't be reached, and the step does not say best_effort.
        """
        if self.name == "fraction":
            return self._fraction(candidates, now)
        wanted = self.asked ** (now.index / now.rounds)
        is_last = now.index == now.rounds
        if self.clock is not None and is_last:
            return self._by_clock(graph, candidates, ctx)
        found = self._cheapest(graph, candidates, wanted)
        if found.ratio < wanted and is_last and self.clock is None:
            self._give_way(found.ratio, ctx)
        return found.removed

    def _fraction(self, candidates: Candidates, now: Round) -> Removed:
        removed = candidates.choose(self.asked * now.index / now.rounds)
        if not removed.any() and now.rounds == 1:
            raise NothingChanged(
                f"fraction {self.asked:g} removes no channel: layers are too narrow for it, or for "
                f"round_to {self.step.multiple} and min_channels {self.step.min_channels}",
                hint="ask for a larger fraction or a smaller round_to",
            )
        return removed

    def _cheapest(self, graph: Graph, candidates: Candidates, wanted: float) -> Found:
        ratio = self._ratio(graph, candidates.plan)
        most = self.step.max_layer_fraction
        return _search.cheapest(candidates.choose, ratio, wanted, most, candidates.blocks)

    def _by_clock(self, graph: Graph, candidates: Candidates, ctx: Context) -> Removed:
        most = self._cheapest(graph, candidates, float("inf")).ratio

        def at(macs_ratio: float) -> Found:
            return self._cheapest(graph, candidates, macs_ratio)

        def time(removed: Removed) -> Timing:
            ctx.report(0.0, "measuring how fast candidates are")
            return self._time(graph, candidates.plan, removed)

        *_, best = tried = _search.fastest(at, time, self.asked, most)
        if best.timing.ratio < self.asked:
            self._give_way(best.timing.ratio, ctx)
        ctx.note(_told(best, len(tried)))
        return best.removed

    def _ratio(self, graph: Graph, plan: Plan) -> Callable[[Removed], float]:
        """How many times cheaper than before the step the network is without some channels."""

        def ratio(removed: Removed) -> float:
            left = channels.surgery.cost(graph, plan, removed, self.shapes)
            if self.name == "parameters_ratio":
                return self.whole.parameters / max(left.parameters, 1)
            return self.whole.macs / max(left.macs, 1)

        return ratio

    def _time(self, graph: Graph, plan: Plan, removed: Removed) -> Timing:
        assert self.clock is not None, "there is a clock where the target is a ratio of times"
        candidate = graph.clone()
        if removed.any():
            channels.surgery.remove(candidate, plan, removed, self.shapes)
        return self.clock.time(candidate, self.asked)

    def _give_way(self, reached: float, ctx: Context) -> None:
        """Takes what can be reached for what was asked, or refuses."""
        step = self.step
        limits = (
            f"{self.name} {self.asked:g} can't be reached: at most {reached:.3g} with max_layer_fraction "
            f"{step.max_layer_fraction}, round_to {step.multiple} and min_channels {step.min_channels}{self.limits}"
        )
        if not step.best_effort or reached <= 1.0:
            raise Unsupported(
                limits,
                hint=f"ask for a lower {self.name}, raise max_layer_fraction, lower round_to, or set best_effort",
            )
        ctx.note(limits)
        self.asked = reached


def _told(best: Timed, timings: int) -> str:
    timing = best.timing
    return (
        f"measured {timing.ratio:.2f} times faster than before this step ({timing.low:.2f} to {timing.high:.2f}) at "
        f"{best.macs_ratio:.2f} times fewer multiply-accumulates, the best of {timings} networks that were timed"
    )


def nothing(plan: Plan) -> Removed:
    """No class goes."""
    return np.zeros(plan.classes.count, dtype=np.bool_)
