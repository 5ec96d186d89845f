"""prune.supermask: a mask learned on frozen random weights (Zhou et al. 2019, arXiv 1905.01067, section 5).

    w = [0.3 -0.3 0.3 -0.3], drawn from a seed  ->  [0.6 0 0 -0.6]        mask [1 0 0 1], rescaled by 4 / 2

Each weight has a score m; in every training step it is kept with probability sigmoid(m), and the gradient passes the draw as if it were
that probability (straight-through). No weight is trained, not even a bias. Dynamic weight rescaling multiplies what is kept of a layer
by n / kept. The paper averages over several masks at test; here the artifact is one network: of the likeliest mask (kept where
m > 0) and of several draws it takes the one of lowest loss on the train split, and the report has the mean over the draws beside it.
Differs in: weights are those of initialize.fresh; layers that are no convolution or matrix product are drawn, but not masked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

from modelpress.spec.prune import PruneSupermask
from modelpress.spec.report import Curve
from workers.engine import data, forward, losses, teaching
from workers.engine.context import Context
from workers.engine.errors import ExportMismatch, NothingChanged
from workers.engine.graph import Graph, execute, match
from workers.engine.measure import trial
from workers.engine.passes.prune import _controls, _seeded, _tally
from workers.engine.passes.prune._seeded import Drawn, Mask, Seeded

FILE = "supermask.npz"
_BATCH = 256


def apply(graph: Graph, step: PruneSupermask, ctx: Context) -> Graph:
    """Replaces the weights of the network by random ones of which a learned mask keeps some.

    Raises:
        NothingChanged: there is no layer to mask.
        BadData, Unsupported: as `train.fit`.
        Diverged: training gave NaN or infinity.
    """
    ctx, for_controls = _controls.shared(step, ctx)
    drawn = Drawn(ctx.seed_of("weights"), step.weights == "signed_constant")
    dense = drawn.graph(graph)
    names = _maskable(dense, step, ctx)
    for name in names:
        dense.set_weight(name, drawn.weight(dense, name))
    module = Masked(dense, names, ctx.generator("masks"), rescale=step.rescale)
    log = teaching.train_by(module, dense, step.training, ctx, step.recover, label="supermask")
    ctx.note(f"the mask was trained by {teaching.described(step.recover)}")
    ctx.note(f"loss {teaching.course(log)}")
    execute.write_back(module.network, dense)
    found = _candidates(module, Seeded(drawn, step.rescale, {}, _seeded.statistics(dense)), step)
    best, result = choose(graph, module, found, ctx)
    _cover(best, ctx)
    _keep(best, result, ctx)
    pruned = {name: ~kept for name, kept in best.masks.items()}
    _controls.train_all(result, step, for_controls, pruned)
    return result


def survey(graph: Graph, ctx: Context) -> None:
    """Lists what could be masked. Raises as `apply`."""
    for name in _maskable(graph, PruneSupermask(), ctx):
        ctx.touched(name, "random weights under a mask can take its place")


class Masked(nn.Module):
    """A network of frozen weights that trains a score for each of those that may go."""

    def __init__(
        self, graph: Graph, names: list[str], generator: torch.Generator, *, rescale: bool
    ) -> None:
        super().__init__()
        self.network = execute.as_module(graph).requires_grad_(False)
        self.scores = nn.ParameterList(torch.zeros(graph.weight(n).shape) for n in names)
        self._names, self._generator, self._rescale = names, generator, rescale

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Runs the network through masks drawn anew, on the CPU so that devices agree."""
        masks = dict(zip(self._names, map(self._draw, self.scores), strict=True))
        return self.run(masks, inputs)

    def run(self, masks: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Runs the network with masks of 0 and 1."""
        weights = self.network.weights
        kept = {name: self._masked(weights[name], mask) for name, mask in masks.items()}
        return self.network.run_with(kept, inputs)

    def likeliest(self) -> dict[str, Mask]:
        """Kept where that is likelier than not."""
        return {n: (m > 0).cpu().numpy() for n, m in zip(self._names, self.scores, strict=True)}

    def sample(self) -> dict[str, Mask]:
        """Masks drawn from what was learned."""
        drawn = (self._coins(torch.sigmoid(m.detach())) for m in self.scores)
        return {n: (m > 0).cpu().numpy() for n, m in zip(self._names, drawn, strict=True)}

    def _draw(self, score: Tensor) -> Tensor:
        probability = torch.sigmoid(score)
        return self._coins(probability.detach()) + probability - probability.detach()

    def _coins(self, probability: Tensor) -> Tensor:
        uniform = torch.rand(probability.shape, generator=self._generator)
        return (uniform.to(probability.device) < probability).to(probability.dtype)

    def _masked(self, weight: Tensor, mask: Tensor) -> Tensor:
        if not self._rescale:
            return weight * mask
        return weight * mask * (mask.numel() / mask.detach().sum().clamp_min(1))


@dataclass(frozen=True)
class Candidate:
    """A mask that the artifact could have, and how it does."""

    name: str
    seeded: Seeded
    loss: float = math.inf
    """Mean over the train split."""
    accuracy: float | None = None
    """On the eval split, of the exported file; null where that has no labels."""


def _train(ctx: Context) -> data.Dataset:
    assert ctx.train is not None, "the recipe was checked: a supermask has labelled data"
    return ctx.train


def _maskable(graph: Graph, step: PruneSupermask, ctx: Context) -> list[str]:
    """Weights of layers, each once; the others are drawn as well, but all of them kept."""
    names: dict[str, None] = {}
    for layer in match.layers(graph):
        if step.excludes(layer.weight, layer.name):
            ctx.skipped(layer.weight, "excluded by the recipe: drawn anew, not masked")
        else:
            names[layer.weight] = None
    if not names:
        raise NothingChanged(
            "prune.supermask found no weight of a convolution or matrix product to mask",
            hint="shorten exclude" if step.exclude else "leave this step out for this model",
        )
    for name, reason in match.not_layers(graph).items():
        ctx.skipped(name, f"drawn anew, not masked: {reason}")
    return list(names)


def _candidates(module: Masked, unmasked: Seeded, step: PruneSupermask) -> Iterator[Candidate]:
    masks = {"the likeliest mask": module.likeliest()}
    masks |= {f"draw {i} of {step.draws}": module.sample() for i in range(1, step.draws + 1)}
    for name, mask in masks.items():
        yield Candidate(name, replace(unmasked, masks=mask))


def choose(
    graph: Graph, module: Masked, candidates: Iterator[Candidate], ctx: Context
) -> tuple[Seeded, Graph]:
    """The mask of lowest training loss and its network; notes how the draws did on the eval split."""
    measured = []
    for candidate in candidates:
        quality = trial.measure(candidate.seeded.graph(graph), ctx) if ctx.eval else None
        accuracy = quality.accuracy if quality is not None else None
        loss = _loss(module, candidate.seeded.masks, ctx)
        measured.append(replace(candidate, loss=loss, accuracy=accuracy))
    best = min(measured, key=lambda candidate: candidate.loss)
    ctx.note(
        f"the artifact has {best.name}: of {len(measured)} masks the one of lowest loss on the train split, {best.loss:.4g}"
    )
    _record(measured[1:], ctx)
    return best.seeded, best.seeded.graph(graph)


@torch.no_grad()
def _loss(module: Masked, masks: Mapping[str, Mask], ctx: Context) -> float:
    """Mean loss over the train split with one mask."""
    dataset = _train(ctx)
    fixed = forward.fixed_batch(ctx.source, dataset)
    loss = losses.classification(ctx.source)
    one = _One(module, {n: torch.from_numpy(m).float().to(ctx.device) for n, m in masks.items()})
    total = 0.0
    for indices in np.array_split(np.arange(dataset.samples), -(-dataset.samples // _BATCH)):
        batch = forward.run(one, dataset, indices, ctx.device, fixed)
        total += loss(batch).item() * len(indices)
    return total / dataset.samples


class _One(nn.Module):
    """The network with one mask."""

    def __init__(self, masked: Masked, masks: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._masked, self._masks = masked, masks

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._masked.run(self._masks, inputs)


def _record(draws: list[Candidate], ctx: Context) -> None:
    """The mean over the draws on the eval split, as the paper reports it."""
    found = [draw.accuracy for draw in draws if draw.accuracy is not None]
    if not found:
        return
    point = _tally.point(fmean(_kept(draw.seeded) for draw in draws), found)
    ctx.coverage.curves.append(
        Curve(name="draws", x="fraction of weights kept", y="accuracy", points=(point,))
    )
    ctx.note(
        f"accuracy of {len(found)} draws: {point.mean:.2%} in the mean, from {min(found):.2%} to {max(found):.2%}"
    )


def _kept(seeded: Seeded) -> float:
    return sum(int(mask.sum()) for mask in seeded.masks.values()) / seeded.bits


def _cover(seeded: Seeded, ctx: Context) -> None:
    for name, mask in seeded.masks.items():
        ctx.touched(
            name, f"drawn anew, {mask.mean():.1%} of {mask.size:,} weights kept, none trained"
        )
    ctx.note("no weight and no bias was trained: only which of the random weights are kept")


def _keep(seeded: Seeded, result: Graph, ctx: Context) -> None:
    """Leaves seed and mask as a file beside the artifact; reads it back to see that it gives the artifact's weights.

    Raises:
        ExportMismatch: it does not.
    """
    path = ctx.work / FILE
    _seeded.write(path, seeded)
    wrong = _seeded.differences(_seeded.read(path, result).graph(result), result)
    if wrong:
        raise ExportMismatch(
            f"{FILE} gives other weights back than those of '{wrong[0]}'", layer=wrong[0]
        )
    ctx.coverage.files.append(path)
    statistics = sum(array.nbytes for array in seeded.statistics.values())
    also = f", {statistics:,} bytes of normalization statistics" if statistics else ""
    ctx.note(
        f"{FILE} has {path.stat().st_size:,} bytes: a seed of 8 bytes, {math.ceil(seeded.bits / 8):,} bytes of mask (one bit for each "
        f"of {seeded.bits:,} weights; a coder can't go below {math.ceil(seeded.entropy_bits / 8):,}){also} and names. The nodes of "
        "the network are not in it, and ONNX Runtime needs the weights written out: the .onnx file is no smaller"
    )
