"""The one training loop. Fine-tuning, distillation and quantization-aware training pass it different losses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from modelpress.spec.step import FineTune
from workers.engine import context, data, forward, losses
from workers.engine.errors import BadData, Diverged

classification_loss = losses.classification

REPORT_EVERY_S = 1.0
ABSURD = 10.0
"""How many times worse than at its start, and than guessing, a loss may end."""
_REFRESH_BATCHES = 64  # at momentum 0.1, 0.1 % of the old statistics is left


@dataclass(frozen=True)
class TrainLog:
    """What a call of `fit` did."""

    losses: tuple[float, ...]  # mean over the samples of each epoch
    steps: int
    samples: int
    seconds: float
    precision: str  # 'float32', 'bfloat16' or 'float16'


def nothing() -> None:
    """Does nothing after a step."""


def fit(
    module: nn.Module,
    dataset: data.Dataset,
    fine_tune: FineTune,
    ctx: context.Context,
    *,
    loss: losses.Loss | None = None,
    after_step: Callable[[], None] = nothing,
    label: str = "fine-tune",
    skip: int = 0,
) -> TrainLog:
    """Trains `module`'s parameters in place on `ctx.device`; leaves it there, in evaluation mode.

    Each epoch is a seeded permutation cut into batches of nearly equal size. The learning rate falls from its peak to
    zero by a cosine over all steps. Weight decay spares vectors (biases, normalization). Parameters in 16 bits are trained through
    copies in float32. On a GPU the forward pass runs in half precision. The same seed gives the same bits on a CPU with the same number of threads.

    A model that can run one fixed batch only is trained in pieces of it, with the statistics of its normalization
    frozen and without dropout, and a note says so.

    `loss` null is the classification loss that fits `ctx.source`. `after_step` runs after each optimizer step: masks
    are re-applied there. With `skip`, so many steps count as done: the same batches follow at the same learning rates, with an
    optimizer that remembers nothing; `skip` is less than all steps, and the losses are those of what follows.

    Raises:
        BadData: no labels where the loss is null, or one that is no class.
        Diverged: the loss or a weight is NaN or infinite, or the last loss is far worse than the first and than chance.
        Unsupported: the loss is null and the model is no classifier.
    """
    if dataset.labels is None and loss is None:
        raise BadData(
            f"{label} needs labels, but the dataset has none", hint="add an array 'labels'"
        )
    started = time.monotonic()
    fixed = forward.fixed_batch(ctx.source, dataset)
    if fixed is not None:
        ctx.note(
            f"the model runs batches of {fixed} and no other: it was trained in such pieces, "
            "with BatchNormalization frozen and without dropout"
        )
    module.to(ctx.device).train(fixed is None)
    torch.manual_seed(ctx.seed_of(f"{label}/dropout"))
    fitting = loss or classification_loss(ctx.source)
    run = _Run(module, dataset, fine_tune, ctx, fitting, after_step, label, fixed, skip)
    epochs = tuple(run.epoch(index) for index in range(skip // run.batches, fine_tune.epochs))
    module.eval()
    _check_finite(module, label)
    run.check_learned(epochs[-1])
    ctx.report(1.0, f"{label}: done, loss {epochs[-1]:.4g}")
    return TrainLog(
        losses=epochs,
        steps=run.step,
        samples=dataset.samples,
        seconds=time.monotonic() - started,
        precision=str(run.precision).removeprefix("torch."),
    )


def steps_in_epoch(dataset: data.Dataset, fine_tune: FineTune) -> int:
    """Optimizer steps of an epoch."""
    return math.ceil(dataset.samples / fine_tune.batch_size)


class _Run:
    """State of one call of `fit`: the step it is at, its optimizer, when it last reported."""

    def __init__(
        self,
        module: nn.Module,
        dataset: data.Dataset,
        fine_tune: FineTune,
        ctx: context.Context,
        loss: losses.Loss,
        after_step: Callable[[], None],
        label: str,
        fixed: int | None,
        skip: int,
    ) -> None:
        self.module, self.dataset, self.ctx = module, dataset, ctx
        self.loss, self.after_step, self.label = loss, after_step, label
        self.fine_tune, self.fixed = fine_tune, fixed
        self.step = skip
        self.batches = steps_in_epoch(dataset, fine_tune)
        self.steps = fine_tune.epochs * self.batches
        self.precision = _precision(ctx.device)
        self.masters = _Masters(module)
        self.optimizer = _optimizer(self.masters.trained, fine_tune)
        self.scaler = torch.amp.GradScaler(ctx.device.type, enabled=self.precision is torch.float16)
        self.first = math.nan
        self.reported = time.monotonic()

    def epoch(self, index: int) -> float:
        """Trains on every sample once, from the batch on that is next; answers the mean loss."""
        total, samples = 0.0, 0
        for indices in islice(self._shuffled(index), self.step - index * self.batches, None):
            value = self._train_on(indices)
            if not math.isfinite(value):
                raise Diverged(
                    f"{self.label}: the loss is {value} in epoch {index + 1}, step {self.step + 1} of {self.steps}",
                    hint=f"lower learning_rate (it is {self.fine_tune.learning_rate:g})",
                )
            self.first = value if math.isnan(self.first) else self.first
            total += value * len(indices)
            samples += len(indices)
            self.step += 1
            self._report(index, value)
        return total / samples

    def check_learned(self, last: float) -> None:
        """Raises Diverged where the mean loss of the last epoch says that the weights are worth nothing, finite as they are."""
        labels = self.dataset.labels
        chance = math.log(max(2, 0 if labels is None else int(labels.max()) + 1))
        limit = ABSURD * max(self.first, chance)
        if last > limit:
            raise Diverged(
                f"{self.label}: the loss is {last:.4g} in the last epoch and was {self.first:.4g} in the first step; "
                f"guessing has {chance:.3g}, more than {limit:.4g} is taken for divergence",
                hint=f"lower learning_rate (it is {self.fine_tune.learning_rate:g})",
            )

    def _shuffled(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        order = self.ctx.random(f"{self.label}/epoch/{epoch}").permutation(self.dataset.samples)
        yield from np.array_split(order, self.batches)

    def _train_on(self, indices: NDArray[np.int64]) -> float:
        self._set_learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        with _autocast(self.ctx.device, self.precision):
            batch = forward.run(self.module, self.dataset, indices, self.ctx.device, self.fixed)
        value = self.loss(batch)
        self.scaler.scale(value).backward()  # type: ignore[no-untyped-call]
        self.masters.take_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.masters.give()
        self.after_step()
        self.masters.follow()
        return value.item()

    def _set_learning_rate(self) -> None:
        rate = self.fine_tune.learning_rate * _cosine(self.step / self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _report(self, epoch: int, value: float) -> None:
        now = time.monotonic()
        if now - self.reported >= REPORT_EVERY_S:
            self.reported = now
            self.ctx.report(
                self.step / self.steps,
                f"{self.label}: epoch {epoch + 1} of {self.fine_tune.epochs}, loss {value:.4g}",
            )


def refresh_batch_norm(
    module: nn.Module, dataset: data.Dataset, ctx: context.Context, *, batch_size: int = 64
) -> int:
    """Runs training batches through `module` so that its running statistics fit its changed weights.

    Weights stay. 64 seeded batches, at the momentum of each layer. Needs no labels. Leaves the module in evaluation mode. Answers the number of batches: none where the
    model can run one fixed batch only.
    """
    if forward.fixed_batch(ctx.source, dataset) is not None:
        return 0
    module.to(ctx.device).train()
    torch.manual_seed(ctx.seed_of("refresh/dropout"))
    order = ctx.random("refresh").permutation(dataset.samples)
    batches = np.array_split(order, math.ceil(len(order) / batch_size))
    done = [batches[index % len(batches)] for index in range(_REFRESH_BATCHES)]
    with torch.no_grad():
        for number, indices in enumerate(done, start=1):
            forward.run(module, dataset, indices, ctx.device)
            ctx.report(number / len(done), "refreshing the statistics of BatchNormalization")
    module.eval()
    return len(done)


def _cosine(done: float) -> float:
    """From 1 at the beginning to 0 at the end."""
    return 0.5 * (1.0 + math.cos(math.pi * done))


class _Masters:
    """What an optimizer holds: parameters, and float32 copies of those in 16 bits (Micikevicius et al. 2018, arXiv 1710.03740, 3.1).

    In float16 squares of gradients and Adam's epsilon are 0, and small steps are lost beside the weight.
    """

    def __init__(self, module: nn.Module) -> None:
        self.trained: list[torch.Tensor] = []
        self._copies: list[tuple[nn.Parameter, torch.Tensor]] = []
        for parameter in module.parameters():
            if parameter.requires_grad:
                self.trained.append(self._held(parameter))

    def _held(self, parameter: nn.Parameter) -> torch.Tensor:
        if parameter.dtype not in (torch.float16, torch.bfloat16):
            return parameter
        copy = parameter.detach().float()
        self._copies.append((parameter, copy))
        return copy

    def take_gradients(self) -> None:
        """Moves those of the parameters to their copies."""
        for parameter, copy in self._copies:
            copy.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def give(self) -> None:
        """Rounds the copies into the parameters."""
        for parameter, copy in self._copies:
            parameter.copy_(copy)

    @torch.no_grad()
    def follow(self) -> None:
        """Lets the copies be what others made of the parameters since they were given."""
        for parameter, copy in self._copies:
            changed = parameter != copy.to(parameter.dtype)
            copy[changed] = parameter[changed].float()


def _optimizer(trained: list[torch.Tensor], fine_tune: FineTune) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": fine_tune.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if fine_tune.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=fine_tune.learning_rate, momentum=0.9)
    return torch.optim.AdamW(groups, lr=fine_tune.learning_rate)


def _precision(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    if precision is torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision)


def _check_finite(module: nn.Module, label: str) -> None:
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise Diverged(
                f"{label}: weight {name!r} is NaN or infinite after training",
                layer=name,
                hint="lower learning_rate",
            )
