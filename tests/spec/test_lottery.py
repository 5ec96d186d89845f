"""What a request for lottery tickets may ask, and what it costs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from modelpress.spec import recipe
from modelpress.spec.prune import PruneLottery, TicketControls, lottery


def refusal(**options: Any) -> str:
    with pytest.raises(ValidationError) as found:
        PruneLottery(**{"rounds": 2, **options})
    return str(found.value)


def test_number_of_rounds_has_no_default() -> None:
    with pytest.raises(ValidationError):
        PruneLottery()


def test_every_seed_trains_a_dense_network_and_in_each_round_a_ticket_and_its_controls() -> None:
    assert PruneLottery(rounds=12, seeds=5).networks == 5 * (1 + 12 * 3)
    assert PruneLottery(rounds=3, controls={"random_mask": False}).networks == 1 + 3 * 2


def test_absurd_cost_is_refused_with_the_number_and_the_limit() -> None:
    said = refusal(rounds=50, seeds=10, training={"epochs": 100})
    assert "1,510 networks of 100 epochs are 151,000 epochs" in said
    assert f"{lottery.MAX_EPOCHS:,}" in said
    assert "fewer seeds" in said


@pytest.mark.parametrize("moment", [{}, {"epochs": 1, "steps": 1}])
def test_moment_has_one_unit(moment: dict[str, int]) -> None:
    assert "exactly one of epochs and steps" in refusal(rewind_to=moment)


def test_rewinding_past_the_end_of_training_is_refused() -> None:
    assert "after 10 epochs, but training has 10" in refusal(rewind_to={"epochs": 10})
    assert PruneLottery(rounds=1, rewind_to={"epochs": 9})


def test_controls_are_asked_for_by_name() -> None:
    assert TicketControls().asked == ("random_reinit", "random_mask")
    assert TicketControls(random_reinit=False, random_mask=False).asked == ()
    assert len(TicketControls(signed_permutation=True, signed_constant=True).asked) == 4


def test_training_defaults_are_the_paper_s() -> None:
    training = PruneLottery(rounds=1).training
    assert (training.optimizer, training.learning_rate, training.batch_size) == ("adam", 1.2e-3, 60)


def test_initial_model_is_used_where_there_is_one_but_not_needed() -> None:
    wanted = recipe.parse({"steps": [{"kind": "prune.lottery", "rounds": 1}]})
    assert wanted.problems(has_data=True, has_labels=True) == []
    assert wanted.unused_models(["initial"]) == []
    assert [p.code for p in wanted.problems(has_data=False, has_labels=False)] == ["missing_data"]


def test_paper_is_named() -> None:
    assert re.search(r"1803\.03635", PruneLottery.paper)
