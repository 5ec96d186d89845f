"""quantize.qat: 8-bit integers with trained weights and step sizes (Esser et al. 2019, arXiv 1902.08153).

    x -> Conv(w) -> Relu -> y
    x -> Q -> DQ -> Conv(DQ(int8 w), DQ(int32 b)) -> Q -> DQ -> y

The network is prepared and calibrated as by `quantize.int8`, then trained with its numbers rounded as the file will round them, and
stored in the same form. Zero points stay as they were calibrated. Differs in: activations have a zero point where the target takes one;
one step for each output channel of a weight; steps begin at calibrated ranges; BatchNormalization is folded first, with the
statistics that it has: by channel, rounding before and after its factor is the same, and what is trained is what the file computes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from modelpress.spec.distill import Distill, Recover
from modelpress.spec.quantize import QuantizeQat
from workers.engine import teachers, teaching
from workers.engine.context import Context
from workers.engine.graph import Graph, execute
from workers.engine.passes.quantize import _plan, _rules, _static, int8
from workers.engine.passes.quantize._builder import Builder
from workers.engine.passes.quantize._plan import Plan
from workers.engine.passes.quantize._refine import Deeds
from workers.engine.passes.quantize._rules import Rules
from workers.engine.passes.quantize._simulated import Simulated
from workers.engine.passes.quantize._static import Codes
from workers.engine.passes.quantize._weights import Layer, Weights

_BY_OUTPUTS = Recover(distill=Distill(alpha=1.0, temperature=1.0))


def apply(graph: Graph, step: QuantizeQat, ctx: Context) -> Graph:
    """Quantizes every layer that the recipe does not exclude, and trains.

    Raises:
        NothingChanged: no layer could be quantized.
        BadModel: an activation is not finite on calibration samples.
        BadData, Diverged: as `train.fit`.
        Unsupported: no output holds floats, so that nothing says what is to be learned.
    """
    start, rules = step.start, _rules.OF[step.target]
    input_shapes = int8.example_shapes(graph, ctx)
    targets, products = int8.prepared(graph, input_shapes, start, ctx)
    limit = int8.weight_limit(start, ctx)
    deeds: Deeds = defaultdict(list)
    int8.balance(graph, targets, input_shapes, start, ctx, deeds)
    ctx.coverage.prepared = graph.clone()
    plan = _plan.make(graph.nodes, _static.kernels(targets, products, rules), rules)
    codes = _static.calibrate(graph, plan, start, ctx, symmetric=rules.symmetric)
    weights = Weights(
        Builder(graph), per_channel=rules.per_channel, integer_biases=rules.integer_biases
    )
    layers = [
        weights.encode(t, limit, codes[t.input] if _static.is_kernel(t, rules) else None)
        for t in targets
    ]
    learned = _learn(graph, _Start(plan, layers, codes), rules, step, ctx, deeds)
    _static.store(learned.layers, products, weights, ctx, deeds)
    _static.code_activations(graph, plan, learned.codes)
    int8.report_float(graph, plan.integer, start, ctx)
    return graph


def survey(graph: Graph, ctx: Context) -> None:
    """As that of `quantize.int8`."""
    int8.survey(graph, ctx)


@dataclass(frozen=True)
class _Start:
    """A quantization: what gets codes, and which."""

    plan: Plan
    layers: list[Layer]
    codes: Codes


def _learn(
    graph: Graph, start: _Start, rules: Rules, step: QuantizeQat, ctx: Context, deeds: Deeds
) -> _Start:
    """The quantization with trained steps; the graph gets the trained weights."""
    relative = step.training.optimizer == "adam"
    simulated = Simulated(graph, start.plan, start.layers, start.codes, rules, relative=relative)
    _train(simulated, graph, step, ctx)
    execute.write_back(simulated.network, graph)
    codes = simulated.coded_activations(start.plan, start.codes)
    layers = []
    for layer in start.layers:
        given = codes[layer.target.input] if layer.input is not None else None
        layers.append(simulated.coded_layer(graph, layer, given))
        _tell(simulated, layer.target.weight, deeds)
    _note_activations(simulated, ctx)
    return _Start(start.plan, layers, codes)


def _train(simulated: Simulated, graph: Graph, step: QuantizeQat, ctx: Context) -> None:
    assert ctx.train is not None, "the recipe was checked: training has data"
    taught = step.distill
    if taught is None:
        taught = ctx.train.labels is None or not teachers.has_scores(graph, ctx)
    log = teaching.train_by(
        simulated,
        graph,
        step.training,
        ctx,
        step.recover if step.recover is not None else (_BY_OUTPUTS if taught else None),
        after_step=simulated.keep_zeros,
        label="qat",
    )
    whose = "the labels"
    if step.recover is not None:
        whose = teaching.described(step.recover)
    elif taught:
        whose = "the uploaded model's outputs"
    ctx.note(f"trained towards {whose}: loss {teaching.course(log)}")


def _tell(simulated: Simulated, name: str, deeds: Deeds) -> None:
    zeros = simulated.zeros(name)
    deeds[name].append(
        f"trained; its step sizes became {simulated.weights[name].change:.3f} of the first"
    )
    if zeros:
        deeds[name].append(f"{zeros:,} zeros kept")


def _note_activations(simulated: Simulated, ctx: Context) -> None:
    changes = [step.change for step in simulated.activations.values()]
    if changes:
        ctx.note(
            f"{len(changes)} step sizes of activations were learned: {min(changes):.3f} to {max(changes):.3f} of the calibrated ones"
        )
