"""The life of a job, transition by transition, on SQLite and Postgres."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app import catalogue, db, errors, events, jobs, sweeper
from app.accounts import Principal
from app.claims import Beat, Claim, StoredFile
from app.tables import Artifact, Dataset, Job, Model
from modelpress.spec.progress import Progress
from modelpress.spec.state import JobState, Outcome
from tests import actor, making


@pytest.fixture
def me(configure: Callable[..., None], database_url: str) -> Principal:
    configure(database_url=database_url, lease_s=30, max_attempts=3)
    return making.principal()


def take(job_id: str, owner: str = "w1") -> Claim:
    with db.transaction() as session:
        return take_in(session, job_id, owner)


def take_in(session: Session, job_id: str, owner: str = "w1") -> Claim:
    taken = jobs.claim(session, job_id, owner=owner, sandbox="none")
    assert taken is not None
    return taken


def lapse(job_id: str) -> None:
    """Lets time pass: the lease of a job has run out."""
    _set_past(job_id, "lease_until")


def become_due(job_id: str) -> None:
    """Lets time pass: a job may be run now."""
    _set_past(job_id, "run_after")


def _set_past(job_id: str, column: str) -> None:
    with db.transaction() as session:
        past = db.now(session) - timedelta(seconds=1)
        session.execute(update(Job).where(Job.id == job_id).values({column: past}))


def states(job_id: str) -> list[str]:
    with db.transaction() as session:
        return [e.data["state"] for e in events.page(session, job_id) if e.type == "state"]


def ends(job_id: str) -> list[str | None]:
    with db.transaction() as session:
        return [a.ended for a in jobs.attempts(session, session.get_one(Job, job_id))]


def test_claimed_job_runs_with_a_lease_and_its_first_fence(me: Principal) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    row = making.row(job_id)
    assert (row.state, row.attempt, row.fence, row.owner) == ("running", 1, 1, "w1")
    assert row.lease_until is not None
    assert row.started_at is not None
    assert taken.fence == 1
    assert states(job_id) == ["queued", "running"]


def test_message_that_comes_twice_changes_nothing(me: Principal) -> None:
    job_id = making.job(me)
    take(job_id)
    with db.transaction() as session:
        assert jobs.claim(session, job_id, owner="w2", sandbox="none") is None
    assert making.row(job_id).owner == "w1"
    assert len(ends(job_id)) == 1


def test_job_that_is_to_wait_is_not_claimed(me: Principal) -> None:
    job_id = making.job(me)
    with db.transaction() as session:
        later = db.now(session) + timedelta(seconds=60)
        session.execute(update(Job).where(Job.id == job_id).values(run_after=later))
        assert jobs.claim(session, job_id, owner="w1", sandbox="none") is None


def test_heartbeat_renews_the_lease(me: Principal) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    lapse(job_id)
    with db.transaction() as session:
        assert jobs.heartbeat(session, taken) == Beat(cancel=False)
        assert session.get_one(Job, job_id).lease_until > db.now(session)


def test_progress_is_stored_with_an_event_and_renews_the_lease(me: Principal) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    lapse(job_id)
    progress = Progress(stage=1, stages=3, name="quantize.int8", fraction=0.5)
    with db.transaction() as session:
        assert jobs.record_progress(session, taken, progress)
    row = making.row(job_id)
    assert row.progress == progress.model_dump(mode="json")
    with db.transaction() as session:
        assert row.lease_until > db.now(session)
        assert events.page(session, job_id)[-1].data["fraction"] == 0.5


def test_each_new_stage_of_a_report_is_an_event(me: Principal) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    for known in (0, 1):
        with db.transaction() as session:
            report = making.report(session, job_id, stages=known + 1)
            jobs.record_report(session, taken, report, known=known)
    with db.transaction() as session:
        stages = [e.data["name"] for e in events.page(session, job_id) if e.type == "stage"]
    assert stages == ["baseline", "quantize.int8"]
    assert len(making.row(job_id).report["stages"]) == 2


def test_succeeded_job_has_its_artifacts_and_outcome(me: Principal) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    made = StoredFile(name="model.onnx", format="onnx", sha256="ab" * 32, size_bytes=7)
    with db.transaction() as session:
        report = making.report(session, job_id).model_copy(update={"outcome": Outcome.MET})
        assert jobs.finish_succeeded(session, taken, report, [made]) is JobState.SUCCEEDED
    row = making.row(job_id)
    assert (row.state, row.outcome, row.lease_until, row.owner) == ("succeeded", "met", None, None)
    with db.transaction() as session:
        assert session.scalars(select(Artifact.sha256)).all() == ["ab" * 32]
    assert ends(job_id) == ["succeeded"]


def test_lost_job_goes_to_another_worker_and_the_first_is_fenced_off(me: Principal) -> None:
    job_id = making.job(me)
    slow = take(job_id, "slow")
    lapse(job_id)
    assert sweeper.sweep().lost == 1
    quick = take(job_id, "quick")
    with db.transaction() as session:
        report = making.report(session, job_id)
        progress = Progress(stage=0, stages=3, name="baseline", fraction=0)
        assert jobs.heartbeat(session, slow) is None
        assert jobs.look(session, slow) is None
        assert jobs.record_progress(session, slow, progress) is None
        assert jobs.record_report(session, slow, report, known=0) is None
        assert jobs.finish_succeeded(session, slow, report, []) is None
        assert jobs.finish_failed(session, slow, making.failure()) is None
        assert jobs.finish_cancelled(session, slow) is None
        assert jobs.finish_expired(session, slow) is None
        assert jobs.release(session, slow) is None
        assert jobs.lose(session, slow) is None
        assert jobs.heartbeat(session, quick) is not None
    row = making.row(job_id)
    assert (row.state, row.owner, row.attempt) == ("running", "quick", 2)
    assert ends(job_id) == ["lost", None]


def test_lease_that_has_not_run_out_is_left_alone(me: Principal) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    assert sweeper.sweep().lost == 0
    with db.transaction() as session:
        assert jobs.lose(session, taken) is None
    assert making.row(job_id).state == "running"


def test_job_lost_in_its_last_attempt_fails_and_says_so(me: Principal) -> None:
    job_id = making.job(me)
    for _ in range(3):
        take(job_id)
        lapse(job_id)
        sweeper.sweep()
    row = making.row(job_id)
    assert row.state == "failed"
    assert (row.failure["class"], row.failure["code"]) == ("internal", "worker_lost")
    assert ends(job_id) == ["lost", "lost", "lost"]


def test_transient_failure_waits_and_is_tried_again(me: Principal) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    with db.transaction() as session:
        assert jobs.finish_failed(session, taken, making.failure("transient")) is JobState.QUEUED
        assert session.get_one(Job, job_id).run_after > db.now(session)
    assert sweeper.sweep().sent == 0
    become_due(job_id)
    assert sweeper.sweep().sent == 1
    take(job_id)


def test_pause_between_attempts_grows(me: Principal) -> None:
    job_id = making.job(me)
    pauses = []
    for _ in range(2):
        taken = take(job_id)
        with db.transaction() as session:
            before = db.now(session)
            jobs.finish_failed(session, taken, making.failure("transient"))
            pauses.append((session.get_one(Job, job_id).run_after - before).total_seconds())
        become_due(job_id)
    assert pauses == [pytest.approx(5, abs=1), pytest.approx(20, abs=1)]


def test_transient_failure_of_the_last_attempt_is_final(me: Principal) -> None:
    job_id = making.job(me)
    for _ in range(3):
        become_due(job_id)
        taken = take(job_id)
        with db.transaction() as session:
            state = jobs.finish_failed(session, taken, making.failure("transient"))
    assert state is JobState.FAILED
    assert making.row(job_id).failure["class"] == "transient"


@pytest.mark.parametrize("class_", ["user_input", "unsupported", "resource", "internal"])
def test_failure_that_would_come_again_is_final_at_once(me: Principal, class_: str) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    with db.transaction() as session:
        assert jobs.finish_failed(session, taken, making.failure(class_)) is JobState.FAILED
    assert making.row(job_id).attempt == 1


@pytest.mark.parametrize("code", ["memory_limit", "out_of_memory"])
def test_second_failure_for_memory_is_final(me: Principal, code: str) -> None:
    job_id = making.job(me)
    seen = []
    for _ in range(2):
        become_due(job_id)
        taken = take(job_id)
        with db.transaction() as session:
            seen.append(jobs.finish_failed(session, taken, making.failure("resource", code)))
    assert seen == [JobState.QUEUED, JobState.FAILED]


def test_failed_job_keeps_what_it_measured(me: Principal) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    with db.transaction() as session:
        report = making.report(session, job_id)
        jobs.finish_failed(session, taken, making.failure(), report=report, log_tail="a\0b")
        [attempt] = jobs.attempts(session, session.get_one(Job, job_id))
        assert attempt.log_tail == "a\ufffdb"
    assert making.row(job_id).report is not None


def test_waiting_job_is_cancelled_at_once(me: Principal) -> None:
    job_id = making.job(me)
    with db.transaction() as session:
        assert jobs.cancel(session, me, job_id).state == "cancelled"
    with db.transaction() as session:
        assert jobs.claim(session, job_id, owner="w1", sandbox="none") is None
    assert states(job_id) == ["queued", "cancelled"]


def test_running_job_is_cancelled_by_its_worker(me: Principal) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    with db.transaction() as session:
        assert jobs.cancel(session, me, job_id).state == "cancelling"
    with db.transaction() as session:
        assert jobs.heartbeat(session, taken) == Beat(cancel=True)
        assert jobs.finish_cancelled(session, taken) is JobState.CANCELLED
    assert states(job_id) == ["queued", "running", "cancelling", "cancelled"]
    assert making.row(job_id).failure is None


def test_cancelled_job_of_a_dead_worker_is_cancelled_by_the_sweep(me: Principal) -> None:
    job_id = making.job(me)
    take(job_id)
    with db.transaction() as session:
        jobs.cancel(session, me, job_id)
    lapse(job_id)
    sweeper.sweep()
    assert making.row(job_id).state == "cancelled"
    assert ends(job_id) == ["lost"]


def test_cancelled_job_of_a_worker_lost_in_its_last_attempt_is_cancelled(me: Principal) -> None:
    job_id = making.job(me)
    for _ in range(2):
        take(job_id)
        lapse(job_id)
        sweeper.sweep()
    take(job_id)
    with db.transaction() as session:
        jobs.cancel(session, me, job_id)
    lapse(job_id)
    sweeper.sweep()
    assert making.row(job_id).state == "cancelled"


def test_worker_can_not_cancel_what_nobody_asked_to(me: Principal) -> None:
    taken = take(making.job(me))
    with db.transaction() as session:
        assert jobs.finish_cancelled(session, taken) is None


@pytest.mark.parametrize("ending", [jobs.release, jobs.finish_expired])
def test_job_asked_to_stop_is_not_run_again(
    me: Principal, ending: Callable[..., JobState | None]
) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    with db.transaction() as session:
        jobs.cancel(session, me, job_id)
    with db.transaction() as session:
        assert ending(session, taken) is JobState.CANCELLED


def test_success_comes_before_a_late_wish_to_cancel(me: Principal) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    with db.transaction() as session:
        jobs.cancel(session, me, job_id)
    with db.transaction() as session:
        report = making.report(session, job_id)
        assert jobs.finish_succeeded(session, taken, report, []) is JobState.SUCCEEDED


def test_cancelling_twice_is_no_error_but_an_ended_job_is(me: Principal) -> None:
    first, second = making.job(me), making.job(me)
    with db.transaction() as session:
        jobs.cancel(session, me, first)
        jobs.cancel(session, me, first)
        jobs.finish_failed(session, take_in(session, second), making.failure())
        with pytest.raises(errors.Conflict, match="has failed"):
            jobs.cancel(session, me, second)


def test_drained_job_waits_again_and_is_not_charged(me: Principal) -> None:
    job_id = making.job(me)
    for _ in range(5):
        taken = take(job_id)
        with db.transaction() as session:
            assert jobs.release(session, taken) is JobState.QUEUED
    row = making.row(job_id)
    assert (row.attempt, row.fence) == (0, 5)
    assert ends(job_id) == ["drained"] * 5
    assert sweeper.sweep().sent == 1


def test_runtime_of_all_attempts_counts(me: Principal) -> None:
    job_id = making.job(me, limits={"max_runtime_s": 100})
    first = take(job_id)
    with db.transaction() as session:
        jobs.release(session, first)
        session.execute(update(Job).where(Job.id == job_id).values(running_s=60.0))
    second = take(job_id)
    assert second.seconds_left == 40
    with db.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(running_s=100.0))
        assert jobs.release(session, second) is JobState.EXPIRED
    assert making.row(job_id).failure["code"] == "runtime_limit"


def test_expired_job_says_which_limit(me: Principal) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    with db.transaction() as session:
        assert jobs.finish_expired(session, taken) is JobState.EXPIRED
    failure = making.row(job_id).failure
    assert (failure["class"], failure["code"]) == ("deadline", "runtime_limit")


def test_job_that_no_worker_takes_expires(me: Principal) -> None:
    job_id = making.job(me, limits={"max_pending_s": 5})
    assert sweeper.sweep().expired == 0
    _set_past(job_id, "pending_until")
    assert sweeper.sweep().expired == 1
    row = making.row(job_id)
    assert (row.state, row.failure["code"]) == ("expired", "pending_limit")


def test_only_a_waiting_job_waits_too_long(me: Principal) -> None:
    job_id = making.job(me)
    take(job_id)
    _set_past(job_id, "pending_until")
    with db.transaction() as session:
        assert jobs.give_up_waiting(session, session.get_one(Job, job_id)) is None
    assert sweeper.sweep().expired == 0
    assert making.row(job_id).state == "running"


def test_inspection_opens_its_model(me: Principal) -> None:
    job_id, model_id = making.inspection(me)
    taken = take(job_id)
    with db.transaction() as session:
        jobs.finish_inspected(session, taken, actor.MODEL)
        assert session.get_one(Model, model_id).state == "ready"


def end_by_failure(session: Session, me: Principal, job_id: str) -> None:
    jobs.finish_failed(session, take_in(session, job_id), making.failure("user_input"))


def end_by_cancel(session: Session, me: Principal, job_id: str) -> None:
    jobs.cancel(session, me, job_id)


def end_by_cancel_while_running(session: Session, me: Principal, job_id: str) -> None:
    taken = take_in(session, job_id)
    jobs.cancel(session, me, job_id)
    jobs.finish_cancelled(session, taken)


def end_by_waiting(session: Session, me: Principal, job_id: str) -> None:
    job = session.get_one(Job, job_id)
    job.pending_until = db.now(session) - timedelta(seconds=1)
    session.flush()
    jobs.give_up_waiting(session, job)


def end_by_runtime(session: Session, me: Principal, job_id: str) -> None:
    jobs.finish_expired(session, take_in(session, job_id))


@pytest.mark.parametrize(
    "ending",
    [end_by_failure, end_by_cancel, end_by_cancel_while_running, end_by_waiting, end_by_runtime],
)
def test_inspection_that_ends_without_a_result_rejects_its_model(
    me: Principal, ending: Callable[[Session, Principal, str], None]
) -> None:
    job_id, model_id = making.inspection(me)
    with db.transaction() as session:
        ending(session, me, job_id)
    with db.transaction() as session:
        model = session.get_one(Model, model_id)
        assert model.state == "rejected"
        assert model.failure is not None


def test_inspection_to_be_tried_again_leaves_its_dataset_waiting(me: Principal) -> None:
    job_id, dataset_id = making.inspection(me, "dataset")
    with db.transaction() as session:
        jobs.finish_failed(session, take_in(session, job_id), making.failure("transient"))
        assert session.get_one(Dataset, dataset_id).state == "inspecting"


def test_job_of_another_project_is_not_found(me: Principal) -> None:
    job_id, stranger = making.job(me), making.principal("others")
    with db.transaction() as session:
        for act in (jobs.get, jobs.cancel):
            with pytest.raises(errors.NotFound):
                act(session, stranger, job_id)
        assert catalogue.jobs(session, stranger.project_id) == []


def test_jobs_come_in_pages_and_filtered(me: Principal) -> None:
    model_id = making.model(me)
    made = [making.job(me, model_id=model_id) for _ in range(3)] + [making.job(me)]
    inspection, _ = making.inspection(me)
    take(made[0])
    newest_first = sorted(made, reverse=True)

    def found(**filters: object) -> list[str]:
        with db.transaction() as session:
            return [job.id for job in catalogue.jobs(session, me.project_id, **filters)]

    assert found(limit=2) == newest_first[:2]
    assert found(cursor=newest_first[1]) == newest_first[2:]
    assert found(state=JobState.RUNNING) == [made[0]]
    assert found(model=model_id) == sorted(made[:3], reverse=True)
    assert found(kind="inspect_model") == [inspection]
