"""Bits for each layer by what they cost the network, measured.

    harm(layer, bits) = E ||y^ - y||^2 / E ||y||^2        y^: outputs of the network with this layer alone at these bits

Harms add up well enough where each is small (HAWQ-V2, arXiv 1911.03852, makes the same assumption of its own measure); the bits of all layers are
the least total harm within a budget. Differs in: measured on the outputs, where HAWQ-V2 takes the trace of the loss's Hessian.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from modelpress.spec.quantize import MixedBits, QuantizeBits
from modelpress.spec.report import Curve, CurvePoint
from workers.engine import data
from workers.engine.context import Context
from workers.engine.errors import Unsupported
from workers.engine.graph import Graph, execute
from workers.engine.measure.quality import Reference
from workers.engine.passes import _knapsack, _moments
from workers.engine.passes.quantize._packed import Packed

Choices = dict[str, int]
Packings = Mapping[str, Mapping[int, Packed]]
"""Each weight at each width."""
Outputs = dict[str, npt.NDArray[np.float32]]

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
        few = _Network(graph, _moments.taken(min(step.samples, SAMPLES), ctx), ctx)
        harm = _harms(few, packings, ctx)
    cost = {
        name: {width: _bits_of(packed, step.mixed) for width, packed in of.items()}
        for name, of in packings.items()
    }
    if step.mixed.average_bits is not None:
        choices = _within(step.mixed.average_bits * _weights(packings), harm, cost, packings)
    else:
        all_ = _Network(graph, _moments.taken(step.samples, ctx), ctx)
        choices = _accurate(all_, harm, cost, packings, step.mixed, ctx)
    _tell(harm, cost, choices, packings, ctx)
    return choices


class _Network:
    """The float network over some training samples."""

    def __init__(self, graph: Graph, samples: data.Dataset, ctx: Context) -> None:
        self._graph, self._samples, self._ctx = graph, samples, ctx
        self._module = execute.as_module(graph).to(ctx.device).eval()

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Of the samples."""
        assert self._samples.labels is not None, "the recipe was checked: there are labels"
        return self._samples.labels

    def outputs(self, packings: Mapping[str, Packed]) -> Outputs:
        """All outputs [samples, ...] of floats, with these weights in the place of the float ones."""
        device = self._ctx.device
        weights = {n: torch.from_numpy(p.decoded()).to(device) for n, p in packings.items()}
        names = [value.name or "" for value in self._graph.outputs]
        rows: dict[str, list[npt.NDArray[np.float32]]] = {}
        for indices, inputs in _moments.feeds(self._graph, self._samples, self._ctx):
            with torch.no_grad():
                answers = self._module.run_with(weights, inputs)
            new = len(np.unique(indices))
            for name, answer in zip(names, answers, strict=True):
                if answer.is_floating_point() and answer.shape[:1] == indices.shape:
                    rows.setdefault(name, []).append(answer[:new].float().cpu().numpy())
        return {name: np.concatenate(parts) for name, parts in rows.items()}

    def accuracy(self, reference: Reference, packings: Mapping[str, Packed]) -> float:
        """Share of the samples that get their label."""
        scores = reference.scores
        if scores is None:
            raise Unsupported(
                "no output of the model scores classes, so that max_accuracy_drop can't be measured",
                hint="set average_bits instead",
            )
        found = reference.top_class(self.outputs(packings)[scores])
        return float((found == self.labels).mean())


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


def _harms(network: _Network, packings: Packings, ctx: Context) -> dict[str, dict[int, float]]:
    float_ = network.outputs({})
    found: dict[str, dict[int, float]] = {}
    for number, (name, of) in enumerate(packings.items(), start=1):
        found[name] = {
            width: _distance(network.outputs({name: packed}), float_)
            for width, packed in of.items()
        }
        ctx.report(number / len(packings), f"measuring the sensitivity of layer {number}")
    return found


def _distance(found: Outputs, wanted: Outputs) -> float:
    """Squared norm of the difference of all outputs over that of what was wanted."""
    moved = sum(float(np.square(found[name] - wanted[name]).sum()) for name in wanted)
    whole = sum(float(np.square(wanted[name]).sum()) for name in wanted)
    return moved / max(whole, 1e-30)


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
    network: _Network,
    harm: _knapsack.Table,
    cost: _knapsack.Table,
    packings: Packings,
    mixed: MixedBits,
    ctx: Context,
) -> Choices:
    """The choices of the smallest budget whose accuracy on training samples is near enough to that of the float network."""
    assert mixed.max_accuracy_drop is not None
    reference = Reference(network.outputs({}))
    before = network.accuracy(reference, {})

    def drop(choices: Choices) -> float:
        return before - network.accuracy(reference, _at(packings, choices))

    most = {
        name: max(of, key=lambda width: (-harm[name][width], of[width]))
        for name, of in cost.items()
    }
    lost = drop(most)
    if lost > mixed.max_accuracy_drop:
        raise Unsupported(
            f"max_accuracy_drop {mixed.max_accuracy_drop:g} can't be kept: at the most accurate choices accuracy on "
            f"{len(network.labels):,} training samples falls by {lost:.4f}",
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
        f"accuracy on {len(network.labels):,} training samples was {before:.2%} in float and fell by {lost * 100:.2f} points"
    )
    return best


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
