from __future__ import annotations

import pytest

from modelpress.spec.report import Stage, StepShare
from tests.client import reports
from workers.engine.measure import shares


def stage(
    step: int | None,
    *,
    size: int = 100,
    macs: int = 100,
    ratio: float = 1.0,
    accuracy: float | None = 0.9,
    coded: int | None = None,
) -> Stage:
    made = reports.stage(f"step {step}", step, file_bytes=size, accuracy=accuracy)
    return made.model_copy(
        update={
            "cost": made.cost.model_copy(update={"macs": macs}),
            "latency": made.latency.model_copy(update={"ratio": ratio}),
            "size": made.size.model_copy(update={"coded_bytes": coded}),
        }
    )


def of(*stages: Stage) -> list[StepShare]:
    return list(shares.of(stages))


def test_steps_that_divide_alike_have_equal_shares():
    first, second = of(stage(None, size=400), stage(0, size=200), stage(1, size=100))
    assert (first.size_factor, second.size_factor) == (2, 2)
    assert (first.size_share, second.size_share) == (0.5, 0.5)


def test_shares_of_each_figure_are_its_own_and_add_up():
    found = of(
        stage(None, size=800, macs=800, ratio=1.0, accuracy=0.9),
        stage(0, size=400, macs=100, ratio=0.5, accuracy=0.92),
        stage(1, size=100, macs=100, ratio=0.25, accuracy=0.88),
    )
    assert [share.size_share for share in found] == pytest.approx([1 / 3, 2 / 3])
    assert [share.macs_share for share in found] == [1, 0]
    assert [share.latency_share for share in found] == [0.5, 0.5]
    assert [share.drop_share for share in found] == pytest.approx([-1, 2])
    assert [share.accuracy_before for share in found] == [0.9, 0.92]
    assert [share.accuracy for share in found] == [0.92, 0.88]


def test_bytes_are_those_of_the_packed_file_where_there_is_one():
    first, second = of(stage(None, size=800), stage(0, size=400), stage(1, size=400, coded=100))
    assert (first.size_factor, second.size_factor) == (2, 4)
    assert second.size_share == pytest.approx(2 / 3)


def test_nothing_won_is_not_shared():
    [only] = of(stage(None), stage(0, accuracy=0.95))
    assert only.size_share is only.macs_share is only.latency_share is only.drop_share is None


def test_without_labels_no_drop_is_shared():
    [only] = of(stage(None, accuracy=None), stage(0, size=50, accuracy=None))
    assert only.drop_share is only.accuracy is None
    assert only.size_share == 1


def test_a_network_without_multiplications_is_no_error():
    [only] = of(stage(None, macs=0), stage(0, macs=0))
    assert only.macs_factor == 1
