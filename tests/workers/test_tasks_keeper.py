"""Holding a job while it runs: what is written how often, and when the hold must be given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from app import db, events, jobs, sweeper
from app.accounts import Principal
from app.claims import Claim
from app.tables import Job
from modelpress.spec.progress import Progress
from tests import making, servers
from workers.keeper import Keeper


@pytest.fixture
def me(configure: Callable[..., None], database_url: str) -> Principal:
    configure(database_url=database_url, lease_s=2, heartbeat_s=0.3)
    return making.principal()


def take(me: Principal) -> Claim:
    job_id = making.job(me)
    with db.transaction() as session:
        taken = jobs.claim(session, job_id, owner="w", sandbox="none")
        assert taken is not None
        return taken


def at(fraction: float) -> Progress:
    return Progress(stage=1, stages=3, name="quantize.int8", fraction=fraction)


def told(taken: Claim, type_: str) -> int:
    with db.transaction() as session:
        return sum(event.type == type_ for event in events.page(session, taken.job.id))


@contextmanager
def database_that_hangs() -> Iterator[None]:
    """Nobody else can read or write a job: our transactions on SQLite exclude each other from their first statement."""
    with db.transaction() as session:
        is_postgres = session.get_bind().dialect.name == "postgresql"
        session.execute(
            text("LOCK TABLE job IN ACCESS EXCLUSIVE MODE" if is_postgres else "SELECT 1")
        )
        yield


def test_lease_of_a_kept_job_does_not_run_out(me: Principal) -> None:
    taken = take(me)
    with Keeper(taken) as keeper:
        until = time.monotonic() + 3  # longer than the lease
        while time.monotonic() < until:
            assert sweeper.sweep().lost == 0
            assert keeper.should_stop() is None
            time.sleep(0.1)


def test_hold_is_given_up_before_the_lease_runs_out_when_the_database_hangs(me: Principal) -> None:
    taken = take(me)
    with Keeper(taken) as keeper:
        began = time.monotonic()
        with database_that_hangs():
            servers.until(lambda: keeper.should_stop() == "fenced", 5)
            assert 1.0 < time.monotonic() - began < 2.0
    assert keeper.should_stop() == "fenced"


def test_hold_lost_to_another_worker_is_noticed(me: Principal) -> None:
    taken = take(me)
    with Keeper(taken) as keeper:
        with db.transaction() as session:
            row = session.get_one(Job, taken.job.id, with_for_update=True)
            row.fence += 1
        servers.until(lambda: keeper.should_stop() == "fenced", 5)


def test_wish_to_cancel_is_noticed(me: Principal) -> None:
    taken = take(me)
    with Keeper(taken) as keeper:
        with db.transaction() as session:
            jobs.cancel(session, me, taken.job.id)
        servers.until(lambda: keeper.should_stop() == "cancelled", 5)


def test_worker_that_drains_says_so(me: Principal) -> None:
    draining = threading.Event()
    with Keeper(take(me), must_drain=draining.is_set) as keeper:
        assert keeper.should_stop() is None
        draining.set()
        assert keeper.should_stop() == "drained"


def test_busy_engine_does_not_make_the_database_busy(me: Principal) -> None:
    taken = take(me)
    with Keeper(taken) as keeper:
        until, number = time.monotonic() + 1.5, 0
        while time.monotonic() < until:
            number += 1
            keeper.tell_progress(at(number / 10_000))
            time.sleep(0.001)
        keeper.flush()
    assert number > 100
    assert 1 <= told(taken, "progress") <= 6
    assert making.row(taken.job.id).progress["fraction"] == number / 10_000


def test_small_steps_are_stored_but_are_no_news(me: Principal) -> None:
    taken = take(me)
    with Keeper(taken) as keeper:
        for fraction in (0.1, 0.101, 0.102, 0.2):
            keeper.tell_progress(at(fraction))
            keeper.flush()
            assert making.row(taken.job.id).progress["fraction"] == fraction
    assert told(taken, "progress") == 2


def test_report_told_while_the_database_hangs_is_written_later(me: Principal) -> None:
    taken = take(me)
    with db.transaction() as session:
        report = making.report(session, taken.job.id, stages=2)
    with Keeper(taken) as keeper:
        with database_that_hangs():
            keeper.tell_report(report)
            time.sleep(0.7)
        servers.until(lambda: told(taken, "stage") == 2, 5)
    assert len(making.row(taken.job.id).report["stages"]) == 2
