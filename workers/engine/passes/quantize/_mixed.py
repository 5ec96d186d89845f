"""Bits for each layer by what they cost the network, measured.

    harm(layer, bits) = E ||y^ - y||^2 / E ||y||^2        y^: outputs of the network with this layer alone at these bits

Harms add up well enough where each is small (HAWQ-V2, arXiv 1911.03852, makes the same assumption of its own measure); the bits of all layers are
the least total harm within a budget. Differs in: measured on the outputs, where HAWQ-V2 takes the trace of the loss's Hessian.
"""

from __future__ import annotations

from collections.abc import Mapping

from modelpress.spec.quantize import MixedBits, QuantizeBits
from modelpress.spec.report import Curve, CurvePoint
from workers.engine.context import Context
from workers.engine.errors import Unsupported
from workers.engine.graph import Graph
from workers.engine.measure.quality import Reference
from workers.engine.passes import _knapsack, _moments, _outputs
from workers.engine.passes.quantize._packed import Packed

Choices = dict[str, int]
Packings = Mapping[str, Mapping[int, Packed]]
"""Each weight at each width."""

SAMPLES = 128
"""On which each layer is measured at each width."""
_HALVINGS = 7
"""Of the search for the smallest budget: to 1 % of what lies between the fewest and the most bits."""


def choose(graph: Graph, packings: Packings, step: QuantizeBits, ctx: Context) -> Choices:
    """Bits of each weight.

    Raises:
        Unsupported: the target can't be reached with these choices.
    """
    assert step.mixed is not None, "asked by the caller"
    harm = _known(packings, ctx)
    if harm is None:
        few = _outputs.Network(graph, _moments.taken(min(step.samples, SAMPLES), ctx), ctx)
        harm = _harms(few, packings, ctx)
    cost = {
        name: {width: _bits_of(packed, step.mixed) for width, packed in of.items()}
        for name, of in packings.items()
    }
    if step.mixed.average_bits is not None:
        choices = _within(step.mixed.average_bits * _weights(packings), harm, cost, packings)
    else:
        all_ = _outputs.Network(graph, _moments.taken(step.samples, ctx), ctx)
        choices = _accurate(all_, harm, cost, packings, step.mixed, ctx)
    _tell(harm, cost, choices, packings, ctx)
    return choices


def _known(packings: Packings, ctx: Context) -> dict[str, dict[int, float]] | None:
    """The harms of weights rounded to nearest, where they were measured before; null where one is missing."""
    table = ctx.sensitivity
    if table is None:
        return None
    sizes = {name: next(iter(of.values())).matrix.shape for name, of in packings.items()}
    widths = sorted({float(width) for of in packings.values() for width in of})
    if missing := table.missing("bits", sizes, widths):
        ctx.note(f"sensitivities were measured anew: in those that are known, {missing}")
        return None
    groups = "outputs" if table.group_size is None else f"groups of {table.group_size}"
    ctx.note(
        f"sensitivities were not measured but known: of weights rounded to nearest in {groups}, on {table.samples:,} training samples"
    )
    errors = table.errors("bits")
    return {
        name: {width: errors[name][width] ** 2 for width in of} for name, of in packings.items()
    }


def _harms(
    network: _outputs.Network, packings: Packings, ctx: Context
) -> dict[str, dict[int, float]]:
    float_ = network.outputs({})
    found: dict[str, dict[int, float]] = {}
    for number, (name, of) in enumerate(packings.items(), start=1):
        found[name] = {
            width: _outputs.error(network.outputs({name: packed.decoded()}), float_)
            for width, packed in of.items()
        }
        ctx.report(number / len(packings), f"measuring the sensitivity of layer {number}")
    return found


def _bits_of(packed: Packed, mixed: MixedBits) -> float:
    """Of a whole weight, in the file or as a packed container could have it; scales and zero points included."""
    sizes = packed.bytes_of
    beside = 8.0 * (sum(sizes.values()) - sizes["codes"])
    width = packed.width if mixed.count == "file" else packed.bits
    return packed.codes.size * width + beside


def _weights(packings: Packings) -> int:
    return sum(next(iter(of.values())).codes.size for of in packings.values())


def _within(
    budget: float,
    harm: _knapsack.Table,
    cost: _knapsack.Table,
    packings: Packings,
) -> Choices:
    choices = _knapsack.least_harm(harm, cost, budget)
    if choices is None:
        elements = _weights(packings)
        fewest = sum(min(of.values()) for of in cost.values()) / elements
        raise Unsupported(
            f"average_bits {budget / elements:g} can't be reached: with the fewest bits allowed, weights take {fewest:.2f} bits each, "
            "scales and zero points included",
            hint="allow fewer bits in choices, or larger groups",
        )
    return choices


def _accurate(
    network: _outputs.Network,
    harm: _knapsack.Table,
    cost: _knapsack.Table,
    packings: Packings,
    mixed: MixedBits,
    ctx: Context,
) -> Choices:
    """The choices of the smallest budget whose accuracy on training samples is near enough to that of the float network."""
    assert mixed.max_accuracy_drop is not None
    reference = Reference(network.outputs({}))
    labels = network.samples.labels
    assert labels is not None, "the recipe was checked: there are labels"
    before = _accuracy(network, reference, {})

    def drop(choices: Choices) -> float:
        return before - _accuracy(network, reference, _at(packings, choices))

    most = {
        name: max(of, key=lambda width: (-harm[name][width], of[width]))
        for name, of in cost.items()
    }
    lost = drop(most)
    if lost > mixed.max_accuracy_drop:
        raise Unsupported(
            f"max_accuracy_drop {mixed.max_accuracy_drop:g} can't be kept: at the most accurate choices accuracy on "
            f"{len(labels):,} training samples falls by {lost:.4f}",
            hint="allow more bits in choices, or method 'gptq'",
        )
    best, lost, low, high = most, lost, *_bounds(cost)
    for number in range(_HALVINGS):
        middle = (low + high) / 2
        choices = _knapsack.least_harm(harm, cost, middle)
        fell = drop(choices) if choices is not None else float("inf")
        if choices is not None and fell <= mixed.max_accuracy_drop:
            best, lost, high = choices, fell, middle
        else:
            low = middle
        ctx.report((number + 1) / _HALVINGS, "looking for the fewest bits that are accurate enough")
    ctx.note(
        f"accuracy on {len(labels):,} training samples was {before:.2%} in float and fell by {lost * 100:.2f} points"
    )
    return best


def _accuracy(
    network: _outputs.Network, reference: Reference, packings: Mapping[str, Packed]
) -> float:
    """Share of the samples that get their label."""
    scores = reference.scores
    if scores is None:
        raise Unsupported(
            "no output of the model scores classes, so that max_accuracy_drop can't be measured",
            hint="set average_bits instead",
        )
    weights = {name: packed.decoded() for name, packed in packings.items()}
    found = reference.top_class(network.outputs(weights)[scores])
    return float((found == network.samples.labels).mean())


def _bounds(cost: _knapsack.Table) -> tuple[float, float]:
    """Of all layers together: the least and the most that they may take."""
    return sum(min(of.values()) for of in cost.values()), sum(
        max(of.values()) for of in cost.values()
    )


def _at(packings: Packings, choices: Choices) -> dict[str, Packed]:
    return {name: packings[name][width] for name, width in choices.items()}


def _tell(
    harm: _knapsack.Table,
    cost: _knapsack.Table,
    choices: Choices,
    packings: Packings,
    ctx: Context,
) -> None:
    """Leaves the measurements as curves, and what came of them."""
    for name, of in harm.items():
        points = tuple(CurvePoint(x=width, mean=of[width]) for width in sorted(of))
        ctx.coverage.curves.append(
            Curve(name=name, x="bits", y="squared error of the outputs, relative", points=points)
        )
    total = sum(cost[name][width] for name, width in choices.items())
    ctx.note(
        f"bits were chosen by the error of the outputs with one layer alone at each width: {total / _weights(packings):.2f} bits "
        "for each weight, scales and zero points included"
    )
