"""The life of a job under any order of events: claims, heartbeats, lapses, endings, cancels, by live and stale workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import ColumnElement, update
from sqlalchemy.orm import Session

from app import db, errors, events, jobs, sweeper
from app.accounts import Principal
from app.claims import Claim
from app.tables import Attempt, Event, Job
from modelpress.spec.progress import Progress
from modelpress.spec.state import TERMINAL, TRANSITIONS, JobState
from tests import making

MAX_ATTEMPTS = 3
FAILURES = [
    ("transient", "killed"),
    ("resource", "memory_limit"),
    ("resource", "disk_limit"),
    ("user_input", "bad_data"),
]


class LifeOfAJob(RuleBasedStateMachine):
    """One job and workers that may act at any time on claims they got at any time."""

    me: Principal
    claims = Bundle("claims")

    @initialize()
    def submit(self) -> None:
        self.job_id = making.job(self.me)
        self.ended_as: str | None = None
        self.last_fence = 0

    @rule(target=claims)
    def claim(self) -> object:
        before = self.row()
        with db.transaction() as session:
            taken = jobs.claim(session, self.job_id, owner="w", sandbox="none")
        assert (taken is not None) == (before.state == "queued" and self.is_due(before))
        return multiple() if taken is None else taken

    @rule(taken=claims)
    def beat(self, taken: Claim) -> None:
        self.judge(taken, lambda session: jobs.heartbeat(session, taken))

    @rule(taken=claims)
    def look(self, taken: Claim) -> None:
        self.judge(taken, lambda session: jobs.look(session, taken))

    @rule(taken=claims)
    def progress(self, taken: Claim) -> None:
        at = Progress(stage=0, stages=3, name="baseline", fraction=0.1)
        self.judge(taken, lambda session: jobs.record_progress(session, taken, at))

    @rule(taken=claims)
    def succeed(self, taken: Claim) -> None:
        with db.transaction() as session:
            report = making.report(session, self.job_id, stages=2)
        self.judge(taken, lambda session: jobs.finish_succeeded(session, taken, report, []))

    @rule(taken=claims, failure=strategies.sampled_from(FAILURES))
    def fail(self, taken: Claim, failure: tuple[str, str]) -> None:
        why = making.failure(*failure)
        self.judge(taken, lambda session: jobs.finish_failed(session, taken, why))

    @rule(taken=claims)
    def expire(self, taken: Claim) -> None:
        self.judge(taken, lambda session: jobs.finish_expired(session, taken))

    @rule(taken=claims)
    def drain(self, taken: Claim) -> None:
        self.judge(taken, lambda session: jobs.release(session, taken))

    @rule(taken=claims)
    def stop(self, taken: Claim) -> None:
        asked = self.holds(taken) and self.row().state == "cancelling"
        with db.transaction() as session:
            assert (jobs.finish_cancelled(session, taken) is not None) == asked

    @rule()
    def cancel(self) -> None:
        ended = self.row().state in {"succeeded", "failed", "expired"}
        try:
            with db.transaction() as session:
                jobs.cancel(session, self.me, self.job_id)
        except errors.Conflict:
            assert ended
        else:
            assert not ended

    @rule()
    def sweep(self) -> None:
        sweeper.sweep()

    @rule()
    def let_the_lease_run_out(self) -> None:
        self.set_past("lease_until", Job.state.in_(jobs.HELD))

    @rule()
    def let_the_pause_end(self) -> None:
        self.set_past("run_after", Job.state == JobState.QUEUED)

    @rule()
    def let_the_job_wait_too_long(self) -> None:
        self.set_past("pending_until", Job.state == JobState.QUEUED)

    @invariant()
    def rules_hold(self) -> None:
        with db.transaction() as session:
            row = session.get_one(Job, self.job_id)
            attempts = jobs.attempts(session, row)
            told = [e for e in events.page(session, self.job_id) if e.type == "state"]
        self.what_has_ended_stays_ended(row)
        self.fence_only_grows_and_counts_the_attempts(row, attempts)
        self.only_the_newest_attempt_can_run(row, attempts)
        self.attempts_charged_are_those_not_given_back(row, attempts)
        self.events_tell_legal_moves_that_lead_here(row, told)

    def what_has_ended_stays_ended(self, row: Job) -> None:
        if self.ended_as is not None:
            assert row.state == self.ended_as
        if row.state in TERMINAL:
            self.ended_as = row.state

    def fence_only_grows_and_counts_the_attempts(
        self, row: Job, attempts: Sequence[Attempt]
    ) -> None:
        assert row.fence >= self.last_fence
        assert [attempt.number for attempt in attempts] == list(range(1, row.fence + 1))
        self.last_fence = row.fence

    def only_the_newest_attempt_can_run(self, row: Job, attempts: Sequence[Attempt]) -> None:
        running = [attempt.number for attempt in attempts if attempt.ended is None]
        assert running == ([row.fence] if row.state in jobs.HELD else [])

    def attempts_charged_are_those_not_given_back(
        self, row: Job, attempts: Sequence[Attempt]
    ) -> None:
        charged = [a for a in attempts if a.ended != "drained"]
        assert row.attempt == len(charged) <= MAX_ATTEMPTS

    def events_tell_legal_moves_that_lead_here(self, row: Job, told: Sequence[Event]) -> None:
        states = [JobState(event.data["state"]) for event in told]
        assert states[0] is JobState.QUEUED
        assert states[-1] == row.state
        for before, after in pairwise(states):
            assert after in TRANSITIONS[before], (before, after)

    def judge(self, taken: Claim, act: Callable[[Session], object]) -> None:
        """A worker's deed counts just as long as it holds the job."""
        held = self.holds(taken)
        with db.transaction() as session:
            assert (act(session) is not None) == held

    def holds(self, taken: Claim) -> bool:
        row = self.row()
        return row.fence == taken.fence and row.state in jobs.HELD

    def is_due(self, row: Job) -> bool:
        with db.transaction() as session:
            return row.run_after <= db.now(session)

    def set_past(self, column: str, when: ColumnElement[bool]) -> None:
        with db.transaction() as session:
            past = {column: db.now(session) - timedelta(seconds=1)}
            session.execute(update(Job).where(Job.id == self.job_id, when).values(past))

    def row(self) -> Job:
        return making.row(self.job_id)


@pytest.fixture
def machine(configure: Callable[..., None], database_url: str) -> type[LifeOfAJob]:
    configure(database_url=database_url, max_attempts=MAX_ATTEMPTS)

    class Machine(LifeOfAJob):
        me = making.principal()

    return Machine


def test_no_order_of_events_breaks_a_job(machine: type[LifeOfAJob]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
