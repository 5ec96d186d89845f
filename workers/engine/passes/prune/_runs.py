"""The runs of prune.lottery: one seed is a dense network, then in each round a ticket and its controls.

All networks of a seed see the same batches in the same order and drop the same units: they differ in where they begin and in their
masks, and in nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from modelpress.spec.prune import PruneLottery
from modelpress.spec.report import Control, Quality
from workers.engine import initialize, teaching, train
from workers.engine.context import Context
from workers.engine.errors import BadData, BadModel, Diverged
from workers.engine.graph import Graph, execute
from workers.engine.measure import trial
from workers.engine.passes import _weights
from workers.engine.passes.prune import _masks, _tickets
from workers.engine.passes.prune._masked import Masked
from workers.engine.passes.prune._masks import Mask
from workers.engine.passes.prune._tally import Tally
from workers.engine.passes.prune._tickets import TICKET

INITIAL = "initial"


@dataclass
class Plan:
    """What all runs have in common, and how many of their networks are done."""

    graph: Graph
    """As it came to the step."""
    initial: Graph | None
    """The same network before training, where the job has it."""
    step: PruneLottery
    ctx: Context
    rates: Mapping[str, float]
    """The fraction of the surviving weights that goes in each round, by weight."""
    rewind: int
    """Optimizer steps of the dense network that tickets do not repeat."""
    tally: Tally
    done: int = 0

    @property
    def trains_dense(self) -> bool:
        """Whether the dense network is trained here; else it is the graph."""
        return self.initial is None or self.rewind > 0

    @property
    def networks(self) -> int:
        """How many are trained."""
        return self.step.networks - (0 if self.trains_dense else self.step.seeds)


def plan(graph: Graph, step: PruneLottery, ctx: Context, rates: Mapping[str, float]) -> Plan:
    """Finds out where runs begin and how long they train.

    Raises:
        BadModel: the initial model has other weights than the graph.
        BadData: rewind_to is after the end of training.
    """
    initial = _initial(graph, ctx) if INITIAL in ctx.models else None
    return Plan(graph, initial, step, ctx, rates, _rewind(step, ctx), Tally())


class Run:
    """One seed."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self._plan, self._seed = plan, seed
        self._ctx = replace(plan.ctx, scope=f"{plan.ctx.scope}/seed/{seed}")

    def play(self) -> tuple[Graph, dict[str, Mask]]:
        """Trains all networks of the seed; answers the ticket of the last round, and its masks.

        Raises:
            Diverged: the dense network or a ticket became NaN or infinite. A control that did is noted and has no point.
        """
        start, trained = self._dense()
        masks = _masks.none_pruned({name: start.weight(name) for name in self._plan.rates})
        for index in range(1, self._plan.step.rounds + 1):
            masks = self._grow(trained, masks, index)
            trained = self._train(TICKET, start, masks, index)
            for variant in self._plan.step.controls.asked:
                self._control(variant, start, masks, index)
        return trained, masks

    def _dense(self) -> tuple[Graph, Graph]:
        """Where tickets begin, and the trained network that is pruned first."""
        plan = self._plan
        if plan.initial is not None and not plan.trains_dense:
            if self._seed == 0:
                self._record_dense(trial.measure(plan.graph, plan.ctx))
            return plan.initial, plan.graph
        w0 = plan.initial or initialize.fresh(plan.graph, self._ctx.random("initial"))
        ctx = self._next("dense network")
        start, trained = _train(w0, {}, plan.step, ctx, keep_at=plan.rewind)
        self._record_dense(trial.measure(trained, ctx))
        return start, trained

    def _record_dense(self, quality: Quality) -> None:
        for curve in (TICKET, *self._plan.step.controls.asked):
            self._plan.tally.add(curve, 1.0, quality)

    def _grow(self, trained: Graph, masks: Mapping[str, Mask], index: int) -> dict[str, Mask]:
        """Masks after round `index`: in each layer 1 - (1 - rate)^index of the weights, those of `masks` among them."""
        rng = self._ctx.random(f"round/{index}/ties")
        scores = _masks.magnitudes({name: trained.weight(name) for name in masks})
        return {
            name: _masks.in_layer(scores[name], masks[name], 1.0 - (1.0 - rate) ** index, rng)
            for name, rate in self._plan.rates.items()
        }

    def _train(self, variant: str, start: Graph, masks: Mapping[str, Mask], index: int) -> Graph:
        """A network of this round, trained, measured and recorded."""
        plan = self._plan
        rng = self._ctx.random(f"round/{index}/{variant}")
        ctx = self._next(f"round {index} of {plan.step.rounds}, {variant}")
        begin, own_masks = _tickets.begin(variant, start, masks, rng)
        _, trained = _train(begin, own_masks, plan.step, ctx, skip=plan.rewind)
        quality = trial.measure(trained, ctx)
        plan.tally.add(variant, _kept(masks), quality)
        if variant != TICKET and self._seed == 0 and index == plan.step.rounds:
            note = f"beside the ticket of the last round, {_kept(masks):.2%} of the weights kept"
            control = Control(
                name=variant, epochs=plan.step.training.epochs, quality=quality, note=note
            )
            ctx.coverage.controls.append(control)
        return trained

    def _control(self, variant: str, start: Graph, masks: Mapping[str, Mask], index: int) -> None:
        try:
            self._train(variant, start, masks, index)
        except Diverged as e:
            self._ctx.note(f"{variant} lacks a run in round {index}: {e.message}")

    def _next(self, name: str) -> Context:
        """The context of the next network: its share of the progress, its name in messages."""
        plan = self._plan
        begin, plan.done = plan.done, plan.done + 1

        def report(fraction: float, message: str) -> None:
            run = f"seed {self._seed + 1} of {plan.step.seeds}"
            plan.ctx.report((begin + fraction) / plan.networks, f"{run}, {name}: {message}")

        return replace(self._ctx, report=report)


def _train(
    begin: Graph,
    masks: Mapping[str, Mask],
    step: PruneLottery,
    ctx: Context,
    *,
    skip: int = 0,
    keep_at: int = 0,
) -> tuple[Graph, Graph]:
    """The network as it was after `keep_at` steps, and trained to the end. `skip` steps count as done."""
    kept, trained = begin.clone(), begin.clone()
    module = execute.as_module(begin).to(ctx.device)
    masked, steps = Masked(module, masks), itertools.count(1)

    def after_step() -> None:
        masked.apply()
        if next(steps) == keep_at:
            execute.write_back(module, kept)

    teaching.train_by(
        module,
        begin,
        step.training,
        ctx,
        step.recover,
        after_step=after_step,
        label="training",
        skip=skip,
    )
    execute.write_back(module, trained)
    return kept, trained


def _initial(graph: Graph, ctx: Context) -> Graph:
    """The graph with the weights of the initial model, in the form that the graph has them in."""
    found = ctx.models[INITIAL].clone()
    _weights.turn(found)
    result = graph.clone()
    for name in graph.initializers:
        there = found.weight(name) if name in found.initializers else None
        if there is None or there.shape != graph.weight(name).shape:
            seen = "has none of that name" if there is None else f"has it as {list(there.shape)}"
            raise BadModel(
                f"weight '{name}' is {list(graph.weight(name).shape)}, but the initial model {seen}",
                layer=name,
                hint="put prune.lottery before the steps that change shapes, or leave out the initial model",
            )
        result.set_weight(name, there)
    return result


def _rewind(step: PruneLottery, ctx: Context) -> int:
    """The optimizer steps of `rewind_to`."""
    assert ctx.train is not None, "the recipe was checked: it has data"
    if step.rewind_to is None:
        return 0
    in_epoch = train.steps_in_epoch(ctx.train, step.training)
    wanted = step.rewind_to.steps or (step.rewind_to.epochs or 0) * in_epoch
    if wanted >= in_epoch * step.training.epochs:
        raise BadData(
            f"rewind_to is after {wanted:,} steps, but {step.training.epochs} epochs on {ctx.train.samples:,} samples are "
            f"{in_epoch * step.training.epochs:,}",
            hint="rewind to an earlier moment, or train for more epochs",
        )
    return wanted


def _kept(masks: Mapping[str, Mask]) -> float:
    """Fraction of the weights of all pruned layers together that are left."""
    sizes = sum(mask.size for mask in masks.values())
    return 1.0 - sum(int(mask.sum()) for mask in masks.values()) / sizes
