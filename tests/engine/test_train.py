from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from modelpress.spec.step import FineTune
from tests.engine import nets
from workers.engine import context, data, formats, forward, losses, train
from workers.engine.context import Context
from workers.engine.data import dataset
from workers.engine.errors import BadData, Diverged, Unsupported
from workers.engine.graph import Graph, execute

TUNE = FineTune(epochs=3, learning_rate=3e-3, batch_size=32)


def classes(samples: int = 300, shape: tuple[int, ...] = (1, 8, 8)) -> data.Dataset:
    """Ten noisy patterns, told apart by any of the nets."""
    rng = np.random.default_rng(0)
    labels = np.arange(samples) % nets.CLASSES
    patterns = rng.normal(size=(nets.CLASSES, *shape))
    x = (patterns[labels] + 0.5 * rng.normal(size=(samples, *shape))).astype(np.float32)
    column = dataset.ArrayColumn(x, x.dtype)
    return replace(dataset.with_columns([("x", column)], samples), labels=labels)


def graph_of(name: str, folder: Path) -> Graph:
    onnx.save(nets.NETS[name](0), folder / f"{name}.onnx")
    return formats.load(folder / f"{name}.onnx")


@pytest.fixture
def surroundings(tmp_path: Path) -> Callable[[str], Context]:
    def make(net: str = "mlp", seed: int = 0, report: context.Report = context.silent) -> Context:
        return Context(
            device=torch.device("cpu"),
            threads=1,
            seed=seed,
            source=graph_of(net, tmp_path),
            work=tmp_path,
            report=report,
        )

    return make


def accuracy(module: nn.Module, of: data.Dataset) -> float:
    with torch.no_grad():
        batch = forward.run(module, of, np.arange(of.samples), torch.device("cpu"))
    assert batch.labels is not None
    return (batch.outputs[0].argmax(1) == batch.labels).float().mean().item()


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_skipped_steps_count_as_done(surroundings) -> None:
    samples = classes(100, (64,))
    whole, rest = (_seen(surroundings(), samples, skip=skip) for skip in (0, 6))
    assert len(whole) == 3 * train.steps_in_epoch(samples, TUNE) == 12
    assert all(torch.equal(a, b) for a, b in zip(whole[6:], rest, strict=True))


def _seen(ctx: Context, samples: data.Dataset, skip: int) -> list[torch.Tensor]:
    """The inputs of each batch that a module is trained on."""
    seen: list[torch.Tensor] = []

    def loss(batch: losses.Batch) -> torch.Tensor:
        seen.append(batch.inputs[0].clone())
        return losses.cross_entropy(batch)

    module = execute.as_module(ctx.source)
    log = train.fit(module, samples, TUNE, ctx, loss=loss, skip=skip)
    assert len(log.losses) == 3 - skip // 4
    assert all(0.5 < value < 4 for value in log.losses)
    return seen


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        ("plain_cnn", (1, 8, 8)),
        ("vision_transformer", (1, 8, 8)),
        ("matmul_mlp", (64,)),
        ("channels_last_cnn", (8, 8, 1)),  # ends in Softmax
    ],
)
def test_training_learns(net: str, shape: tuple[int, ...], surroundings) -> None:
    samples = classes(shape=shape)
    ctx = surroundings(net)
    module = execute.as_module(ctx.source)
    before = accuracy(module.eval(), samples)
    log = train.fit(module, samples, FineTune(epochs=8, learning_rate=0.01), ctx)
    assert not module.training
    assert log.losses[-1] < 0.8 * log.losses[0]
    assert accuracy(module, samples) > before + 0.2
    assert (log.steps, log.samples, log.precision) == (40, 300, "float32")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weights_in_16_bits_learn(optimizer: str, dtype: torch.dtype, surroundings) -> None:
    """Masks hold, and steps that are smaller than the weights can tell add up."""
    samples, module = classes(shape=(64,)), nn.Sequential(nn.Linear(64, 10)).to(dtype)
    module = _In16Bits(module, dtype)
    before = accuracy(module, samples)
    weight = module.inner[0].weight
    with torch.no_grad():
        weight[:, ::2] = 0

    def mask() -> None:
        with torch.no_grad():
            weight[:, ::2] = 0

    tune = FineTune(epochs=8, learning_rate=0.01, optimizer=optimizer)
    log = train.fit(module, samples, tune, surroundings(), after_step=mask)
    assert weight.dtype is dtype
    assert not weight[:, ::2].any()
    assert log.losses[-1] < 0.8 * log.losses[0]
    assert accuracy(module, samples) > before + 0.2


class _In16Bits(nn.Module):
    """A module in 16 bits that takes and gives float32, in a tuple."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self._dtype = inner, dtype

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.inner(x.to(self._dtype)).float(),)


def test_what_a_hook_makes_of_weights_in_16_bits_stays(surroundings) -> None:
    """Once, after the first step: later steps go on from there."""
    module = _In16Bits(nn.Linear(64, 10), torch.float16).half()
    weight, calls = module.inner.weight, []

    @torch.no_grad()
    def lift() -> None:
        calls.append(weight.clone())
        if len(calls) == 1:
            weight.add_(3)

    tune = FineTune(epochs=1, learning_rate=1e-4)
    train.fit(module, classes(320, (64,)), tune, surroundings(), after_step=lift)
    assert len(calls) > 2
    assert float((weight - calls[0]).detach().float().mean()) == pytest.approx(3, abs=0.05)


def test_steps_too_small_for_16_bits_add_up(surroundings) -> None:
    """From 1, float16 goes no less than 1/2048 down at once; each step is a tenth of that."""
    samples = classes(320, (64,))
    module = _In16Bits(nn.Linear(64, 10), torch.float16).half()
    with torch.no_grad():
        module.inner.weight.fill_(1)

    def loss(batch: losses.Batch) -> torch.Tensor:
        return module.inner.weight.float().mean() + 0 * batch.outputs[0].sum()

    tune = FineTune(epochs=4, learning_rate=5e-5, batch_size=8)
    train.fit(module, samples, tune, surroundings(), loss=loss)
    assert (module.inner.weight < 1).all()


@pytest.mark.parametrize("net", ["plain_cnn", "matmul_mlp"])
def test_the_same_seed_gives_the_same_bits(net: str, surroundings) -> None:
    samples = classes(shape=(1, 8, 8) if net == "plain_cnn" else (64,))
    results = []
    for seed in (1, 1, 2):
        ctx = surroundings(net, seed)
        module = execute.as_module(ctx.source)
        train.fit(module, samples, TUNE, ctx)
        results.append(state(module))
        torch.rand(17)  # whatever else draws numbers in between
    first, again, other = results
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_every_sample_is_seen_once_an_epoch_in_batches_of_nearly_one_size(surroundings) -> None:
    samples = classes(100, (64,))
    seen: list[torch.Tensor] = []

    def watch(batch: losses.Batch) -> torch.Tensor:
        seen.append(batch.inputs[0])
        return losses.cross_entropy(batch)

    ctx = surroundings()
    log = train.fit(execute.as_module(ctx.source), samples, TUNE, ctx, loss=watch)
    sizes = [len(x) for x in seen]
    assert sizes == [25] * 12
    assert log.steps == 12
    wanted = np.unique(samples.batch(np.arange(100))["x"], axis=0)
    for epoch in range(3):
        got = torch.cat(seen[4 * epoch : 4 * epoch + 4]).numpy()
        np.testing.assert_array_equal(np.unique(got, axis=0), wanted)
    assert not torch.equal(seen[0], seen[4])


class Number(nn.Module):
    """A weight matrix, a bias, and an output that knows nothing of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.bias = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.bias.expand(len(x), 2) + self.weight.sum(),)


def test_the_learning_rate_falls_by_a_cosine_over_all_steps(surroundings) -> None:
    module, values = Number(), [1.0]
    # Adam moves by the learning rate when the gradient never changes
    train.fit(
        module,
        classes(96, (64,)),
        FineTune(epochs=2, learning_rate=0.1, batch_size=32),
        surroundings(),
        loss=lambda batch: module.bias.sum(),
        after_step=lambda: values.append(module.bias[0].item()),
    )
    rates = -np.diff(values)
    wanted = [0.05 * (1 + np.cos(np.pi * step / 6)) for step in range(6)]
    np.testing.assert_allclose(rates, wanted, rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weight_decay_spares_vectors(optimizer: str, surroundings) -> None:
    module = Number()
    tune = FineTune(epochs=1, learning_rate=0.1, weight_decay=0.5, optimizer=optimizer)
    train.fit(
        module,
        classes(64, (64,)),
        tune,
        surroundings(),
        loss=lambda batch: 0.0 * (module.weight.sum() + module.bias.sum()),
    )
    assert (module.weight < 0.99).all()
    assert (module.bias == 1).all()


def test_what_runs_after_each_step_holds_at_the_end(surroundings) -> None:
    ctx = surroundings("plain_cnn")
    module = execute.as_module(ctx.source)
    name, weight = next((n, w) for n, w in module.weights.items() if w.ndim == 4)
    mask = (torch.rand_like(weight) > 0.5).float()

    def apply() -> None:
        with torch.no_grad():
            weight.mul_(mask)

    apply()
    train.fit(module, classes(64), TUNE, ctx, after_step=apply)
    assert (module.weights[name][mask == 0] == 0).all()
    assert (module.weights[name][mask == 1] != 0).any()


def test_divergence_is_named_by_epoch_step_and_loss(surroundings) -> None:
    ctx = surroundings()
    wild = FineTune(epochs=5, learning_rate=10, optimizer="sgd", batch_size=32)

    def explode(batch: losses.Batch) -> torch.Tensor:
        return batch.outputs[0].pow(4).sum() * 1e6

    with pytest.raises(Diverged, match=r"loss is (nan|inf) in epoch 1, step \d+ of 50") as caught:
        train.fit(execute.as_module(ctx.source), classes(300, (64,)), wild, ctx, loss=explode)
    assert caught.value.hint == "lower learning_rate (it is 10)"


def test_a_loss_that_ends_far_above_guessing_is_divergence_though_finite(surroundings) -> None:
    ctx = surroundings("vision_transformer")
    wild = FineTune(epochs=4, learning_rate=10)
    with pytest.raises(
        Diverged, match=r"is \d+\.?\d* in the last epoch.*guessing has 2\.3"
    ) as caught:
        train.fit(execute.as_module(ctx.source), classes(shape=(1, 8, 8)), wild, ctx)
    assert caught.value.hint == "lower learning_rate (it is 10)"


@pytest.mark.parametrize(("last", "diverges"), [(22.9, False), (23.1, True)])
def test_a_loss_may_end_ten_times_worse_than_guessing(surroundings, last: float, diverges) -> None:
    values = iter([0.1, last])
    module = Number()
    brief = FineTune(epochs=2, batch_size=64)

    def loss(batch: losses.Batch) -> torch.Tensor:
        return module.bias.sum() * 0 + next(values)

    def fit() -> None:
        train.fit(module, classes(64, (64,)), brief, surroundings(), loss=loss)

    if diverges:
        with pytest.raises(Diverged, match=r"was 0\.1 in the first step"):
            fit()
    else:
        fit()


def test_a_weight_that_the_last_step_broke_is_noticed(surroundings) -> None:
    module = Number()

    def breaks() -> None:
        with torch.no_grad():
            module.bias[0] = torch.inf

    with pytest.raises(Diverged, match="'bias' is NaN or infinite"):
        train.fit(
            module,
            classes(32, (64,)),
            FineTune(epochs=1),
            surroundings(),
            loss=lambda batch: module.bias.sum(),
            after_step=breaks,
        )


def test_training_without_labels_is_refused(surroundings) -> None:
    ctx = surroundings()
    unlabelled = replace(classes(32, (64,)), labels=None)
    with pytest.raises(BadData, match="round 1 needs labels"):
        train.fit(execute.as_module(ctx.source), unlabelled, TUNE, ctx, label="round 1")


def test_a_label_beyond_the_classes_is_refused(surroundings) -> None:
    ctx = surroundings()
    wrong = replace(classes(32, (64,)), labels=np.full(32, 99))
    with pytest.raises(BadData, match="label 99 occurs"):
        train.fit(execute.as_module(ctx.source), wrong, TUNE, ctx)


def test_a_model_that_answers_images_is_not_trained_by_labels(surroundings) -> None:
    ctx = surroundings("upsampling_cnn")
    with pytest.raises(Unsupported, match="no output of the model is"):
        train.fit(execute.as_module(ctx.source), classes(32), TUNE, ctx)


def test_progress_grows_to_one(surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "REPORT_EVERY_S", 0.0)
    told: list[tuple[float, str]] = []
    ctx = surroundings(report=lambda fraction, message: told.append((fraction, message)))
    train.fit(execute.as_module(ctx.source), classes(64, (64,)), TUNE, ctx, label="round 2")
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (1 / 6, 1.0)
    assert told[0][1].startswith("round 2: epoch 1 of 3, loss ")


def test_a_batch_holds_what_a_distillation_needs(surroundings) -> None:
    ctx = surroundings()
    teacher, student = execute.as_module(ctx.source).eval(), execute.as_module(ctx.source)
    with torch.no_grad():
        for weight in student.weights.values():
            weight.mul_(0.5)

    def distil(batch: losses.Batch) -> torch.Tensor:
        with torch.no_grad():
            wanted = teacher(*batch.inputs)
        return nn.functional.mse_loss(batch.outputs[0], wanted[0])

    log = train.fit(student, classes(300, (64,)), TUNE, ctx, loss=distil)
    assert log.losses[-1] < 0.5 * log.losses[0]


def test_refreshing_moves_statistics_to_the_data_and_leaves_weights(surroundings) -> None:
    norm = nn.BatchNorm1d(64)
    module = nn.Sequential(norm)
    module.register_forward_hook(lambda _, __, output: (output,))
    samples = replace(classes(300, (64,)), labels=None)
    batches = train.refresh_batch_norm(module, samples, surroundings())
    x = samples.batch(np.arange(300))["x"]
    np.testing.assert_allclose(norm.running_mean, x.mean(0), atol=0.15)
    np.testing.assert_allclose(norm.running_var, x.var(0), rtol=0.25)
    assert (norm.weight == 1).all()
    assert batches == 64
    assert not module.training


def test_fitting_updates_running_statistics(surroundings) -> None:
    ctx = surroundings("plain_cnn")
    module = execute.as_module(ctx.source)
    before = {name: value.clone() for name, value in module.statistics.items()}
    train.fit(module, classes(64), TUNE, ctx)
    assert before
    assert all(not torch.equal(before[name], module.statistics[name]) for name in before)
