from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from tests.engine import nets
from workers.engine import context
from workers.engine.context import Context
from workers.engine.data import dataset
from workers.engine.errors import BadData, Unsupported
from workers.engine.graph import Graph


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    graph = Graph(ir.from_proto(nets.mlp()))
    return Context(device=torch.device("cpu"), threads=1, seed=7, source=graph, work=tmp_path)


@pytest.fixture
def _torch_settings() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def test_the_same_name_draws_the_same_numbers(ctx: Context) -> None:
    first, again = ctx.random("masks").integers(0, 1 << 30, 8), ctx.random("masks")
    np.testing.assert_array_equal(first, again.integers(0, 1 << 30, 8))
    assert torch.equal(
        torch.rand(8, generator=ctx.generator("masks")),
        torch.rand(8, generator=ctx.generator("masks")),
    )


def test_purposes_steps_and_seeds_draw_different_numbers(ctx: Context) -> None:
    other = Context(
        device=ctx.device, threads=1, seed=8, source=ctx.source, work=ctx.work, report=ctx.report
    )
    seeds = {
        ctx.seed_of("a"),
        ctx.seed_of("b"),
        ctx.for_step(0, context.silent).seed_of("a"),
        ctx.for_step(1, context.silent).seed_of("a"),
        other.seed_of("a"),
    }
    assert len(seeds) == 5
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_each_step_begins_with_nothing_covered(ctx: Context) -> None:
    first = ctx.for_step(0, context.silent)
    first.touched("conv1.weight", "50 % of 72 weights zero")
    first.skipped("fc.weight", "excluded by the recipe")
    first.note("once")
    first.note("once")
    assert [t.layer for t in first.coverage.touched] == ["conv1.weight"]
    assert [s.reason for s in first.coverage.skipped] == ["excluded by the recipe"]
    assert first.coverage.notes == ["once"]
    assert ctx.for_step(1, context.silent).coverage == context.Coverage()


@pytest.mark.usefixtures("_torch_settings")
def test_torch_is_made_deterministic_in_one_place() -> None:
    assert context.prepare_torch("cpu", 1) == torch.device("cpu")
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    context.prepare_torch("cpu", 0)
    assert torch.get_num_threads() == context.cores()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.usefixtures("_torch_settings")
def test_a_gpu_that_is_not_there_is_refused_with_the_way_out() -> None:
    with pytest.raises(Unsupported, match="finds none") as caught:
        context.prepare_torch("cuda", 1)
    assert "gpu queue" in caught.value.hint
    assert context.prepare_torch("auto", 1) == torch.device("cpu")


def test_datasets_of_different_folders_are_never_used_together(ctx: Context) -> None:
    column = dataset.with_columns([("x", dataset.ArrayColumn(np.ones((2, 64)), np.dtype("f4")))], 2)
    train, held = (replace(column, classes=names) for names in (("cat", "dog"), ("cat", "fox")))
    with pytest.raises(BadData, match=r"differ in \['dog', 'fox'\]"):
        replace(ctx, train=train, eval=held)
