"""The pruned network trained from new weights (Liu et al. 2018, arXiv 1810.05270, section 3).

scratch_e    for E epochs
scratch_b    for int(E * F / f) epochs, F and f the multiply-accumulates of the uploaded and of the pruned network

The shape is that of the step's result; of masks, the same weights stay at zero. The learning rate decays over all epochs of a control, so
that its schedule is stretched with them. Under masks f counts kept weights only, which dense kernels do not save: scratch_b then has
equal computation on paper, and takes longer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from modelpress.spec.prune import Controls, Pruning
from modelpress.spec.report import Control
from workers.engine import initialize, train
from workers.engine.context import Context
from workers.engine.errors import Diverged
from workers.engine.graph import Graph, execute, match, shapes
from workers.engine.measure import trial
from workers.engine.passes.prune._masked import Masked
from workers.engine.passes.prune._masks import Mask


def shared(step: Pruning, ctx: Context, networks: int = 1) -> tuple[Context, Context]:
    """The contexts of the step itself, which trains so many networks, and of its controls: each has an equal share of the progress."""
    border = networks / (networks + len(_asked(step.controls)))
    return _stretch(ctx, 0.0, border), _stretch(ctx, border, 1.0)


def train_all(
    graph: Graph, step: Pruning, ctx: Context, masks: Mapping[str, Mask] | None = None
) -> None:
    """Trains and measures the controls that the step asks for, and records them. graph: the step's result, left as it is."""
    names = _asked(step.controls)
    for index, name in enumerate(names):
        part = _stretch(ctx, index / len(names), (index + 1) / len(names))
        _train(name, graph, step, replace(part, scope=f"{ctx.scope}/{name}"), masks or {})


def _asked(controls: Controls | None) -> list[str]:
    if controls is None:
        return []
    return [name for name in ("scratch_e", "scratch_b") if getattr(controls, name)]


def _train(name: str, graph: Graph, step: Pruning, ctx: Context, masks: Mapping[str, Mask]) -> None:
    """A control that diverges is noted: the step's own result does not depend on it."""
    epochs, note = _epochs(name, graph, step, ctx, masks)
    try:
        scratch = _from_scratch(name, graph, step, ctx, masks, epochs)
        measured = trial.measure(scratch, ctx)
    except Diverged as e:
        ctx.note(f"{name} was not measured: {e.message}; set controls.learning_rate")
        return
    ctx.coverage.controls.append(Control(name=name, epochs=epochs, quality=measured, note=note))


def _from_scratch(
    name: str, graph: Graph, step: Pruning, ctx: Context, masks: Mapping[str, Mask], epochs: int
) -> Graph:
    assert step.controls is not None
    training = step.control_training
    assert training is not None, "the recipe was checked: controls come with training"
    assert ctx.train is not None, "the recipe was checked: training has data"
    result = initialize.fresh(graph, ctx.random("weights"))
    module = execute.as_module(result).to(ctx.device)
    masked = Masked(module, masks)
    masked.apply()
    rate = step.controls.learning_rate or training.learning_rate
    how = training.model_copy(update={"epochs": epochs, "learning_rate": rate})
    train.fit(module, ctx.train, how, ctx, after_step=masked.apply, label=name)
    masked.apply()
    execute.write_back(module, result)
    return result


def _epochs(
    name: str, graph: Graph, step: Pruning, ctx: Context, masks: Mapping[str, Mask]
) -> tuple[int, str]:
    """How long a control is trained, and why so long."""
    assert step.controls is not None
    own = step.trained_epochs
    equal = step.controls.epochs or own
    why = f"E is {equal}, " + (
        "as controls.epochs says"
        if step.controls.epochs
        else "the epochs of the step's own training: what the uploaded model was trained for is not known"
    )
    if name == "scratch_e":
        return equal, why
    whole, left = macs(ctx.source, {}, ctx), macs(graph, masks, ctx)
    epochs = equal_computation(equal, whole, left)
    why += f"; multiply-accumulates {whole:,} -> {left:,}"
    why += " where those with a pruned weight do not count" if masks else ""
    most = step.controls.max_epochs_ratio
    if most is not None and epochs > int(most * equal):
        why += f"; {epochs} epochs were cut to {most:g} times E"
        epochs = int(most * equal)
    return epochs, why


def equal_computation(epochs: int, whole: int, left: int) -> int:
    """Epochs of a network of `left` multiply-accumulates that cost as much as `epochs` of one of `whole`."""
    return max(epochs, epochs * whole // max(left, 1))


def macs(graph: Graph, masks: Mapping[str, Mask], ctx: Context) -> int:
    """Multiply-accumulates of one sample; of a masked layer, those with a kept weight."""
    given = {} if ctx.train is None else {n: a.shape for n, a in ctx.train.batch([0]).items()}
    counts = shapes.macs(graph, shapes.example_shapes(graph, given=given))
    for layer in match.layers(graph):
        if layer.weight in masks and layer.name in counts:
            mask = masks[layer.weight]
            counts[layer.name] = math.ceil(
                counts[layer.name] * (mask.size - mask.sum()) / mask.size
            )
    return sum(counts.values())


def _stretch(ctx: Context, begin: float, end: float) -> Context:
    def report(fraction: float, message: str) -> None:
        ctx.report(begin + (end - begin) * fraction, message)

    return replace(ctx, report=report)
