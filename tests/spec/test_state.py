"""The life of a job, as a table: where it may go and whose fault an end is."""

from __future__ import annotations

import pytest

from modelpress.spec import state
from modelpress.spec.state import JobState


def test_every_state_has_its_moves() -> None:
    assert set(state.TRANSITIONS) == set(JobState)


def test_terminal_states_are_those_without_a_move() -> None:
    assert {s for s, moves in state.TRANSITIONS.items() if not moves} == state.TERMINAL


def test_every_state_can_be_reached_from_queued() -> None:
    reached, front = set(), {JobState.QUEUED}
    while front:
        reached |= front
        front = {after for s in front for after in state.TRANSITIONS[s]} - reached
    assert reached == set(JobState)


def test_every_living_state_can_end_as_cancelled() -> None:
    for before in set(JobState) - state.TERMINAL:
        moves = state.TRANSITIONS[before]
        assert moves & {JobState.CANCELLED, JobState.CANCELLING}


def test_every_class_of_failure_blames_someone() -> None:
    assert set(state.BLAME) == set(state.FailureClass)
    assert set(state.BLAME.values()) == {"user", "service"}


@pytest.mark.parametrize("class_", list(state.FailureClass))
def test_failure_survives_its_own_json_under_the_name_class(class_: state.FailureClass) -> None:
    failure = state.Failure(**{"class": class_}, code="bad_model", message="no")
    text = failure.model_dump_json(by_alias=True)
    assert f'"class":"{class_.value}"' in text
    assert state.Failure.model_validate_json(text) == failure
    assert failure.retryable is (class_ in state.RETRYABLE)
    assert failure.blame == state.BLAME[class_]
