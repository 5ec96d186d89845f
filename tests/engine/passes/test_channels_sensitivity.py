"""prune.channels with scope 'sensitivity': from each layer the fraction that costs the same alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from modelpress.spec.analyze import AnalyzeSensitivity
from modelpress.spec.prune import PruneChannels
from tests.engine import jobs
from workers.engine import context, passes
from workers.engine.measure import cost
from workers.engine.passes.prune._levels import Levels, Line

A, B, C = ((((name, 0),), False) for name in "abc")


def test_share_lies_on_the_line_between_what_was_measured():
    line = Line.of({0.5: 0.2, 0.25: 0.1, 0.75: 1.0})
    assert [line.share(level) for level in (0.0, 0.1, 0.6)] == pytest.approx([0.0, 0.25, 0.625])
    assert line.share(1.0) == 0.75
    assert line.share(1.2) == pytest.approx(0.75 + 0.2 * 0.75)
    assert line.share(10.0) == 1.0


def test_error_that_falls_counts_as_the_one_before_it():
    line = Line.of({0.25: 0.4, 0.5: 0.1})
    assert line.share(0.39) < 0.25
    assert line.share(0.4) == 0.5


def test_layers_lose_what_costs_the_same_and_the_fraction_in_all():
    levels = Levels({A: Line.of({0.5: 0.1}), B: Line.of({0.5: 0.3}), C: Line.of({0.5: 0.3})})
    a, b, c = levels.shares([(A, 30), (B, 20), (C, 10)], 0.3, 0.9)
    assert b == c == pytest.approx(a / 3)
    assert 30 * a + 20 * b + 10 * c == pytest.approx(0.3 * 60)
    capped, b, _ = levels.shares([(A, 30), (B, 20), (C, 10)], 0.8, 0.9)
    assert capped == 0.9
    assert b == pytest.approx(0.7)
    assert levels.shares([(A, 30), (B, 20)], 0.9, 0.9) == pytest.approx([0.9, 0.9])


def test_layer_that_was_not_measured_loses_the_fraction():
    levels = Levels({A: Line.of({0.5: 0.1})})
    assert levels.shares([(A, 10), (B, 10)], 0.3, 0.9)[1] == 0.3
    assert Levels({}).shares([(B, 10)], 0.3, 0.9) == [0.3]


def test_layers_that_cost_nothing_go_as_far_as_they_may():
    assert Levels({A: Line.of({0.5: 0.0})}).shares([(A, 10)], 0.8, 0.9)[0] >= 0.5


def surroundings(name, tmp_path):
    model, graph = jobs.load(name, tmp_path)
    return graph, jobs.context_of(graph.clone(), tmp_path, jobs.dataset_of(model))


def widths(graph):
    return {name: graph.weight(name).shape for name in graph.parameters()}


def test_layers_that_cost_more_alone_lose_less(tmp_path):
    graph, ctx = surroundings("residual_cnn", tmp_path)
    passes.apply(graph, AnalyzeSensitivity(methods=("channels",)), ctx)
    errors = ctx.coverage.sensitivity.errors("channels")
    before = widths(graph)
    step = PruneChannels(fraction=0.4, scope="sensitivity")
    after = widths(passes.apply(graph.clone(), step, replace(ctx, coverage=context.Coverage())))
    gone = [1 - after[name][0] / before[name][0] for name in errors]
    assert np.corrcoef(gone, [of[0.5] for of in errors.values()])[0, 1] < -0.8


def test_what_is_known_leads_to_what_measuring_leads_to(tmp_path):
    graph, ctx = surroundings("plain_cnn", tmp_path)
    step = PruneChannels(macs_ratio=1.6, round_to=1, scope="sensitivity", samples=32)
    measured = passes.apply(graph.clone(), step, ctx)
    assert "was measured on 32 training samples" in ctx.coverage.notes[0]
    passes.apply(graph, AnalyzeSensitivity(samples=32), ctx)
    known = replace(ctx, sensitivity=ctx.coverage.sensitivity, coverage=context.Coverage())
    found = passes.apply(graph.clone(), step, known)
    assert known.coverage.notes[0] == "what layers cost alone was known, from 32 training samples"
    assert widths(found) == widths(measured)
    shapes = {name: array.shape for name, array in ctx.train.batch([0]).items()}
    was, now = (cost.measure(of, shapes).macs for of in (graph, found))
    assert 1.6 <= was / now < 1.8


def test_table_without_channels_is_measured_anew_and_said(tmp_path):
    graph, ctx = surroundings("mlp", tmp_path)
    passes.apply(graph, AnalyzeSensitivity(methods=("magnitude",), samples=16), ctx)
    known = replace(ctx, sensitivity=ctx.coverage.sensitivity, coverage=context.Coverage())
    tuned = {"epochs": 1, "batch_size": 24}
    step = PruneChannels(fraction=0.5, scope="sensitivity", rounds=2, fine_tune=tuned)
    passes.apply(graph.clone(), step, known)
    first, second = known.coverage.notes[:2]
    assert "was measured anew" in first
    assert "was not measured with 'channels'" in first
    assert "was measured on" in second
    told = [note for note in known.coverage.notes if "channels that may go are gone" in note]
    assert float(told[0].split("(")[1].split("%")[0]) == pytest.approx(50, abs=4)
