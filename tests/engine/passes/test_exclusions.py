from __future__ import annotations

from pathlib import Path

import pytest

from modelpress.spec.recipe import STEPS
from tests.engine import jobs
from workers.engine import passes

KINDS = {
    "analyze.sensitivity": {"methods": ("bits",), "samples": 24},
    "code.entropy": {},
    "prune.magnitude": {"sparsity": 0.5},
    "prune.channels": {"fraction": 0.5},
    "quantize.bits": {},
    "quantize.cluster": {"bits": 4},
    "quantize.float16": {},
    "quantize.int8": {"samples": 24},
    "rewrite.low_rank": {"ratio": 1.5},
}


def notes(kind: str, exclude: tuple[str, ...], folder: Path) -> list[str]:
    """What the report says of patterns."""
    model, graph = jobs.load("mlp", folder)
    ctx = jobs.context_of(graph, folder, jobs.dataset_of(model))
    passes.apply(graph, STEPS[kind](exclude=exclude, **KINDS[kind]), ctx)
    return [note for note in ctx.coverage.notes if note.startswith("exclude")]


@pytest.mark.parametrize("kind", KINDS)
def test_pattern_that_matches_nothing_is_told_by_every_step(kind, tmp_path):
    [note] = notes(kind, ("weight_9", "fc*"), tmp_path)
    assert "'fc*'" in note
    assert kind in note


def test_patterns_that_match_a_weight_or_a_node_are_not_told(tmp_path):
    assert not notes("quantize.bits", ("weight_9", "Gemm_[3]"), tmp_path)
