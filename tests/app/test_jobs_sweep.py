"""The sweep: what it sends again and when, and that any number of them do no harm, on SQLite and Postgres."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from app import db, events, jobs, storage, sweeper, uploads
from app.accounts import Principal
from app.claims import Claim
from app.tables import Job, Upload
from modelpress.spec.progress import Progress
from modelpress.spec.report import Report
from tests import making, servers


@pytest.fixture
def me(configure: Callable[..., None], database_url: str) -> Principal:
    configure(database_url=database_url, resend_s=30)
    return making.principal()


def set_times(job_id: str, *, waiting_s: float, sent_s: float | None) -> None:
    """Lets time pass: a job has waited so long, and its message was sent so long ago, or never."""
    with db.transaction() as session:
        now = db.now(session)
        times = {
            "run_after": now - timedelta(seconds=waiting_s),
            "dispatched_at": None if sent_s is None else now - timedelta(seconds=sent_s),
        }
        session.execute(update(Job).where(Job.id == job_id).values(times))


@pytest.mark.parametrize(
    ("waiting_s", "sent_s", "is_sent"),
    [
        (1, None, True),
        (20, 20, False),
        (40, 40, True),
        (200, 90, False),
        (200, 110, True),
        (50_000, 290, False),
        (50_000, 310, True),
        (-5, None, False),
    ],
)
def test_message_is_sent_again_the_rarer_the_longer_a_job_waits(
    me: Principal, waiting_s: float, sent_s: float | None, *, is_sent: bool
) -> None:
    set_times(making.job(me), waiting_s=waiting_s, sent_s=sent_s)
    assert sweeper.sweep().sent == is_sent
    assert sweeper.sweep().sent == 0


def test_job_that_runs_or_has_ended_is_not_sent(me: Principal) -> None:
    running, cancelled = making.job(me), making.job(me)
    for job_id in (running, cancelled):
        set_times(job_id, waiting_s=100, sent_s=None)
    with db.transaction() as session:
        jobs.claim(session, running, owner="w", sandbox="none")
        jobs.cancel(session, me, cancelled)
    assert sweeper.sweep().sent == 0


def test_only_the_head_of_a_queue_is_sent(me: Principal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "BATCH", 2)
    made = [making.job(me) for _ in range(4)]
    for number, job_id in enumerate(made):
        set_times(job_id, waiting_s=100 - number, sent_s=None)
    assert sweeper.sweep().sent == 2
    with db.transaction() as session:
        sent = [session.get_one(Job, job_id).dispatched_at is not None for job_id in made]
    assert sent == [True, True, False, False]


def test_jobs_submitted_while_the_broker_is_away_are_sent_when_it_is_back(
    configure: Callable[..., None], sqlite_database_url: str, redis_url: str
) -> None:
    away = f"redis://127.0.0.1:{servers.free_port()}/0"
    configure(database_url=sqlite_database_url, broker_url=away, resend_s=30)
    me = making.principal()
    job_id = making.job(me)
    set_times(job_id, waiting_s=40, sent_s=40)
    assert sweeper.sweep().sent == 0
    assert making.row(job_id).dispatched_at is None
    configure(database_url=sqlite_database_url, broker_url=redis_url, resend_s=30)
    assert sweeper.sweep().sent == 1


def test_job_is_claimed_by_one_of_many_workers(me: Principal) -> None:
    job_id = making.job(me)

    def claim(number: int) -> Claim | None:
        with db.transaction() as session:
            return jobs.claim(session, job_id, owner=f"w{number}", sandbox="none")

    with ThreadPoolExecutor(12) as pool:
        claims = [taken for taken in pool.map(claim, range(12)) if taken is not None]
    assert len(claims) == 1
    assert making.row(job_id).attempt == 1


def test_many_sweepers_take_each_lost_job_once(me: Principal) -> None:
    made = [making.job(me) for _ in range(12)]
    with db.transaction() as session:
        for job_id in made:
            jobs.claim(session, job_id, owner="w", sandbox="none")
        past = db.now(session) - timedelta(seconds=1)
        session.execute(update(Job).values(lease_until=past))
    with ThreadPoolExecutor(6) as pool:
        swept = list(pool.map(lambda _: sweeper.sweep(), range(12)))
    assert sum(one.lost for one in swept) == 12
    assert sum(one.sent for one in swept) == 12
    for job_id in made:
        with db.transaction() as session:
            [attempt] = jobs.attempts(session, session.get_one(Job, job_id))
        assert attempt.ended == "lost"


def test_worker_and_sweep_agree_who_ends_a_job(me: Principal) -> None:
    """A worker finishes at the moment its lease runs out: the job has succeeded or waits, never both."""
    for _ in range(10):
        job_id = making.job(me)
        with db.transaction() as session:
            taken = jobs.claim(session, job_id, owner="w", sandbox="none")
            assert taken is not None
            past = db.now(session) - timedelta(seconds=1)
            session.execute(update(Job).where(Job.id == job_id).values(lease_until=past))
            report = making.report(session, job_id, stages=2)

        def finish(taken: Claim = taken, report: Report = report) -> bool:
            with db.transaction() as session:
                return jobs.finish_succeeded(session, taken, report, []) is not None

        with ThreadPoolExecutor(2) as pool:
            finishing, sweeping = pool.submit(finish), pool.submit(sweeper.sweep)
        assert finishing.result() + sweeping.result().lost == 1
        assert making.row(job_id).state == ("succeeded" if finishing.result() else "queued")


def test_upload_whose_time_is_over_is_removed(me: Principal) -> None:
    with db.transaction() as session:
        upload = uploads.create(session, me.project_id, filename="f", size_bytes=5)
        upload_id = upload.id
        upload.expires_at = db.now(session) - timedelta(seconds=1)
    assert sweeper.sweep().uploads == 1
    with db.transaction() as session:
        assert session.get(Upload, upload_id) is None


def test_messages_that_killed_processes_left_behind_are_removed(
    configure: Callable[..., None], sqlite_database_url: str, tmp_path: Path
) -> None:
    configure(database_url=sqlite_database_url)
    waiting = [
        tmp_path / "broker" / folder / "1.cpu.msg" for folder in ("queue", "staged", "taken")
    ]
    for path in waiting:
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, times=(0, 0))
    assert sweeper.sweep().messages == 2
    assert [path.exists() for path in waiting] == [True, False, False]


def test_sweeper_is_a_process_that_ends_when_told(
    configure: Callable[..., None], sqlite_database_url: str, tmp_path: Path
) -> None:
    values = {"database_url": sqlite_database_url, "sweep_s": 0.1}
    configure(**values)
    job_id = making.job(making.principal())
    set_times(job_id, waiting_s=40, sent_s=None)
    argv = [sys.executable, "-m", "app.sweeper"]
    env = servers.environment(home=tmp_path, **values)
    with servers.process(argv, log=tmp_path / "log", env=env) as running:
        servers.until(lambda: making.row(job_id).dispatched_at is not None, what=running.text)
        assert running.terminate() == 0


def test_sweeper_goes_on_when_the_database_is_away(
    configure: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    configure(database_url="sqlite:////nowhere/at/all.db", sweep_s=0.05)
    running = sweeper.Sweeper()
    running.start()
    servers.until(lambda: caplog.text.count("a sweep failed") >= 2)
    running.stop()


def test_job_that_can_not_be_swept_does_not_keep_the_others_waiting(
    me: Principal, caplog: pytest.LogCaptureFixture
) -> None:
    broken, _ = making.inspection(me)
    sound = making.job(me)
    with db.transaction() as session:
        past = db.now(session) - timedelta(seconds=1)
        session.execute(update(Job).values(pending_until=past))
        session.execute(update(Job).where(Job.id == broken).values(model_id=None))
    sweeper.sweep()
    assert making.row(sound).state == "expired"
    assert making.row(broken).state == "queued"
    assert "can't be swept" in caplog.text


def test_old_progress_is_forgotten_and_nothing_else(
    me: Principal, configure: Callable[..., None]
) -> None:
    configure(progress_kept_s=100)
    job_id = making.job(me)
    with db.transaction() as session:
        claim = jobs.claim(session, job_id, owner="w", sandbox="none")
        assert claim is not None
        for done in (0.1, 0.2, 0.3):
            at = Progress(stage=0, stages=2, name="baseline", fraction=done)
            jobs.record_progress(session, claim, at)
    with db.transaction() as session:
        told = events.page(session, job_id)
        for event in told[:-1]:
            event.created_at = db.now(session) - timedelta(seconds=101)

    assert sweeper.sweep().progress == 2
    assert sweeper.sweep().progress == 0
    with db.transaction() as session:
        left = events.page(session, job_id)
    assert [event.type for event in left] == ["state", "state", "progress"]
    assert [event.id for event in left] == [event.id for event in (*told[:2], told[-1])]


def test_sweeper_looks_through_the_store_from_time_to_time(
    me: Principal, configure: Callable[..., None], tmp_path: Path
) -> None:
    configure(sweep_s=0.05, orphans_scan_s=0.1, orphans_after_s=1e-3)
    making.store(me, tmp_path / "scratch", b"left behind")
    key = storage.blob_key(me.project_id, making.digest(b"left behind"))
    running = sweeper.Sweeper()
    running.start()
    try:
        servers.until(lambda: not storage.get().has(key))
    finally:
        running.stop()
