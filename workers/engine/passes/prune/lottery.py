"""prune.lottery: a sparse network that trains well from where it began (Frankle, Carbin 2019, arXiv 1803.03635).

    w0 -> trained -> mask of the largest -> w0 under the mask -> trained -> smaller mask -> ... -> trained ticket

Iterative magnitude pruning within each layer, `rate` of the surviving weights in each round and half of it in the output layer
(section 2 and appendix B), biases never; then every weight is reset to its initial value, or to that of an early moment of training
(arXiv 1903.01611). Differs in: exact counts with a seeded tie-break, where the published code prunes one weight more and all ties; a
learning rate that falls by a cosine; accuracy after the last epoch, not where a validation loss is lowest, so that nothing is chosen by
the eval split.

The initial weights come as the model of role 'initial', of which the uploaded model is the trained form; else they are drawn here, and
the uploaded model only gives the architecture. What networks begin with: _tickets.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from modelpress.spec.prune import PruneLottery
from workers.engine import teaching
from workers.engine.context import Context
from workers.engine.errors import NothingChanged
from workers.engine.graph import Graph, match
from workers.engine.passes import _weights
from workers.engine.passes.prune import _controls, _runs

_OWN_INIT = (
    "the weights before this step were not used, only the architecture: every run begins with weights drawn from the job's seed. "
    "Compare with the curves at 1.0, the same network trained in full in the same way"
)
_UPLOADED_INIT = (
    "the model before this step is taken for what training made of the initial model: the first masks are of its weights, and it is the "
    "point of the curves at 1.0, however it was trained"
)
_REWOUND_INIT = (
    "the dense network was trained here from the initial model, as rewind_to needs a moment of its training: the weights before this step "
    "were not used"
)
_NO_GAIN = (
    "zeros alone make neither the file smaller nor dense kernels faster: see zipped_bytes, entropy_bytes and "
    "theoretical_bytes for what a coder gains from them"
)
_ONE_RUN = (
    "one run has no interval: set seeds to 5, as in the paper, before you believe a difference"
)


def apply(graph: Graph, step: PruneLottery, ctx: Context) -> Graph:
    """The first run's ticket of the last round, trained. The curves have the others.

    Raises:
        NothingChanged: there is nothing to prune, or rates are so low that no weight goes.
        BadModel: the initial model has other weights.
        BadData: rewind_to is after the end of training, or no score can be measured.
        Diverged: the dense network or a ticket became NaN or infinite.
    """
    ctx, for_controls = _controls.shared(step, ctx, step.networks)
    _weights.turn(graph)
    rates = _rates(graph, step, ctx)
    plan = _runs.plan(graph, step, ctx, rates)
    (ticket, masks), *_ = [_runs.Run(plan, seed).play() for seed in range(step.seeds)]
    ctx.coverage.curves.extend(plan.tally.curves())
    _cover(ticket, rates, ctx)
    _note(step, plan.networks, ctx)
    _controls.train_all(ticket, step, for_controls, masks)
    return ticket


def survey(graph: Graph, ctx: Context) -> None:
    """Lists what could be pruned. Raises as `apply`."""
    _weights.turn(graph)
    for name, rate in _rates(graph, PruneLottery(rounds=1), ctx).items():
        ctx.touched(name, f"{rate:.3g} of its surviving weights can go in a round")


def _rates(graph: Graph, step: PruneLottery, ctx: Context) -> dict[str, float]:
    """The fraction of survivors that goes in each round, by weight; the layers that keep all are reported with a reason."""
    rates: dict[str, float] = {}
    last = {layer.weight for layer in _last(graph)}
    for layer in match.layers(graph):
        if step.excludes(layer.weight, layer.name):
            ctx.skipped(layer.weight, "excluded by the recipe: trained and reset, not pruned")
        else:
            rates.setdefault(layer.weight, _rate(layer, step, is_last=layer.weight in last))
    if not rates:
        raise NothingChanged(
            "prune.lottery found no weight of a convolution or matrix product to prune",
            hint="shorten exclude" if step.exclude else "leave this step out for this model",
        )
    for name, reason in match.not_layers(graph).items():
        ctx.skipped(name, reason)
    return rates


def _rate(layer: match.Layer, step: PruneLottery, *, is_last: bool) -> float:
    if is_last:
        return step.rate / 2 if step.output_rate is None else step.output_rate
    if layer.kind in ("Conv", "ConvTranspose") and step.conv_rate is not None:
        return step.conv_rate
    return step.rate


def _last(graph: Graph) -> Iterator[match.Layer]:
    """Layers whose result reaches an output through no other layer."""
    layers = {layer.node: layer for layer in match.layers(graph)}
    pending, seen = [value.producer() for value in graph.outputs], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in layers:
            yield layers[node]
        else:
            pending.extend(value.producer() for value in node.inputs if value is not None)


def _cover(ticket: Graph, rates: Mapping[str, float], ctx: Context) -> None:
    pruned = 0
    for name, rate in rates.items():
        weight = ticket.weight(name)
        zeros = int((weight == 0).sum())
        pruned += zeros
        ctx.touched(
            name, f"{zeros / weight.size:.1%} of {weight.size:,} weights zero, {rate:.3g} a round"
        )
    if not pruned:
        raise NothingChanged(
            "prune.lottery pruned no weight: the layers are too small for its rates",
            hint="ask for a higher rate or more rounds",
        )


def _note(step: PruneLottery, networks: int, ctx: Context) -> None:
    if _runs.INITIAL not in ctx.models:
        ctx.note(_OWN_INIT)
    else:
        ctx.note(_UPLOADED_INIT if step.rewind_to is None else _REWOUND_INIT)
    ctx.note(
        f"{networks:,} networks were trained, each for {step.training.epochs} epochs; the curves are measured on the eval split after the "
        "last epoch, and nothing was chosen by them"
    )
    if step.recover is not None and step.recover.distill is not None:
        ctx.note(f"every network was trained by {teaching.described(step.recover)}")
    if step.seeds == 1:
        ctx.note(_ONE_RUN)
    ctx.note("biases and normalization parameters are never pruned")
    ctx.note(_NO_GAIN)
