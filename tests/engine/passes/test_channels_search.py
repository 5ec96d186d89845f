"""The search for a target, on functions whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from workers.engine.passes.prune import _search
from workers.engine.passes.prune._search import Found, Timing

CHANNELS = 64


def choose(fraction):
    removed = np.zeros(CHANNELS, dtype=bool)
    removed[: int(fraction * CHANNELS + 1e-9)] = True
    return removed


def ratio(removed):
    return CHANNELS / (CHANNELS - removed.sum())


def no_blocks(removed):
    return []


@pytest.mark.parametrize("wanted", [1.1, 2.0, 3.7])
def test_the_least_that_is_enough_is_found(wanted):
    found = _search.cheapest(choose, ratio, wanted, 0.9, no_blocks)
    assert found.ratio >= wanted
    fewer = choose((found.removed.sum() - 1) / CHANNELS)
    assert ratio(fewer) < wanted


def test_where_nothing_is_enough_the_most_is_answered():
    found = _search.cheapest(choose, ratio, 100, 0.5, no_blocks)
    assert found.ratio == 2.0


def test_nothing_goes_where_nothing_must():
    assert not _search.cheapest(choose, ratio, 1.0, 0.9, no_blocks).removed.any()


def test_blocks_come_back_as_long_as_the_ratio_allows():
    def coarse(fraction):
        return choose(0.75 if fraction > 0.5 else 0.0)

    def blocks(removed):
        gone = np.flatnonzero(removed)
        return [("a", gone[:8]), ("b", gone[8:32]), ("a", gone[32:40]), ("b", gone[40:])]

    found = _search.cheapest(coarse, ratio, 2.0, 0.9, blocks)
    assert found.ratio == 2.0  # both of a; b's 24 are too many, and its others are not tried
    assert found.removed.sum() == 32


def clock(power, noise=0.0, floor=0.0):
    """Time as a power of the multiply-accumulates, with a floor below which nothing gets faster."""
    rng = np.random.default_rng(0)

    def time(removed):
        macs = 1 - removed.mean()
        faster = 1 / (macs**power * (1 - floor) + floor) * (1 + noise * rng.standard_normal())
        return Timing(faster, faster, faster)

    return time


def at(macs_ratio):
    return _search.cheapest(choose, ratio, macs_ratio, 0.95, no_blocks)


@pytest.mark.parametrize("power", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_time_is_met_by_the_slowest_network_that_is_fast_enough(power, noise):
    *rest, best = _search.fastest(at, clock(power, noise), 2.0, 16.0)
    assert best.timing.ratio >= 2.0
    assert len(rest) < _search.MOST_TIMINGS
    quick = [timed for timed in rest if timed.timing.ratio >= 2.0]
    assert all(best.macs_ratio <= timed.macs_ratio for timed in quick)
    assert abs(best.macs_ratio - 2.0 ** (1 / power)) < 0.35 * best.macs_ratio


def test_a_floor_of_time_ends_at_the_most_with_the_fastest():
    *rest, best = _search.fastest(at, clock(1.0, floor=0.4), 4.0, 16.0)
    assert best.timing.ratio < 4.0
    assert best.timing.ratio == max(timed.timing.ratio for timed in (*rest, best))
    assert max(timed.macs_ratio for timed in (*rest, best)) >= 15


def test_one_measurement_is_enough_where_it_hits():
    assert len(_search.fastest(at, clock(1.0), 2.0, 16.0)) == 1


def test_found_is_what_was_measured():
    tried = _search.fastest(at, clock(0.7), 3.0, 16.0)
    assert all(isinstance(at(t.macs_ratio), Found) for t in tried)
    assert all(ratio(t.removed) == t.macs_ratio for t in tried)
