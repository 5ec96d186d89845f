"""One job in this process: a real database and store, the real fence, and a stand-in for the engine inside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from app import blobs, db, events, jobs, settings, storage
from app.accounts import Principal
from app.tables import Artifact, Attempt, Model, Sensitivity
from modelpress.spec import order
from modelpress.spec import sensitivity as spec
from modelpress.spec.state import JobState
from tests import acting, actor, making, servers
from workers import drain, performing, staging


@pytest.fixture
def me(configure: Callable[..., None], sqlite_database_url: str, tmp_path: Path) -> Principal:
    configure(database_url=sqlite_database_url, lease_s=8, heartbeat_s=0.5, drain_s=0.2)
    someone = making.principal()
    making.store(someone, tmp_path / "scratch")
    return someone


@pytest.fixture(autouse=True)
def _not_draining() -> Iterator[None]:
    yield
    drain.forget()


def perform(job_id: str) -> JobState | None:
    return performing.perform(job_id, owner="w1", engine=acting.ENGINE)


def performing_in_background(job_id: str) -> threading.Thread:
    thread = threading.Thread(target=perform, args=(job_id,))
    thread.start()
    return thread


def types(job_id: str) -> list[str]:
    with db.transaction() as session:
        return [event.type for event in events.page(session, job_id)]


def is_told(job_id: str, type_: str) -> bool:
    return type_ in types(job_id)


def last_attempt(job_id: str) -> Attempt:
    with db.transaction() as session:
        return jobs.attempts(session, making.row(job_id))[-1]


def work_dir() -> list[Path]:
    return list(settings.get().resolved_work_dir.iterdir())


def test_performed_job_leaves_its_report_artifacts_and_events(me: Principal) -> None:
    job_id = making.job(me, seed=7)
    assert perform(job_id) is JobState.SUCCEEDED
    row = making.row(job_id)
    assert row.outcome == "met"
    assert row.report["complete"]
    assert row.sandbox == "none" or "seccomp" in row.sandbox
    assert types(job_id).count("stage") == 2
    with db.transaction() as session:
        [artifact] = session.scalars(select(Artifact)).all()
    assert artifact.size_bytes == len("compressed with seed 7")


def test_artifact_is_in_the_store_under_its_hash(me: Principal, tmp_path: Path) -> None:
    perform(making.job(me, seed=7))
    with db.transaction() as session:
        [artifact] = session.scalars(select(Artifact)).all()
    key = storage.blob_key(me.project_id, artifact.sha256)
    storage.get().fetch_to_file(key, tmp_path / "fetched", sha256=artifact.sha256)
    assert (tmp_path / "fetched").read_text() == "compressed with seed 7"


def test_artifact_that_is_removed_before_a_row_names_it_is_stored_again(
    me: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, stored = storage.Store.put_file, []

    def removed_once(self: storage.Store, key: str, path: Path) -> None:
        put(self, key, path)
        stored.append(key)
        if len(stored) == 1:
            blobs.mark()
            blobs.remove()

    monkeypatch.setattr(storage.Store, "put_file", removed_once)
    monkeypatch.setenv("MODELPRESS_ORPHANS_AFTER_S", "1e-9")
    settings.get.cache_clear()
    assert perform(making.job(me, seed=7)) is JobState.SUCCEEDED
    assert len(stored) == 2
    assert storage.get().has(stored[0])


@pytest.mark.parametrize("act", ["", "fail user_input", "kill"])
def test_nothing_is_left_in_the_work_directory(me: Principal, act: str) -> None:
    perform(making.job(me, act=act))
    assert work_dir() == []


def test_failure_of_the_engine_is_the_job_s_with_what_it_measured(me: Principal) -> None:
    job_id = making.job(me, act="fail user_input")
    assert perform(job_id) is JobState.FAILED
    row = making.row(job_id)
    assert (row.failure["class"], row.failure["stage"]) == ("user_input", "steps/0")
    assert len(row.report["stages"]) == 1


def test_killed_engine_is_tried_again(me: Principal) -> None:
    job_id = making.job(me, act="kill")
    assert perform(job_id) is JobState.QUEUED
    assert last_attempt(job_id).failure["class"] == "transient"


def test_engine_that_makes_nothing_has_not_succeeded(me: Principal) -> None:
    job_id = making.job(me, act="mute")
    assert perform(job_id) is JobState.FAILED
    assert making.row(job_id).failure["code"] == "bad_output"


def test_second_message_for_a_job_is_ignored(me: Principal) -> None:
    job_id = making.job(me)
    perform(job_id)
    assert perform(job_id) is None
    assert perform("job_unknown") is None


def test_inspection_opens_or_rejects_its_model(me: Principal, tmp_path: Path) -> None:
    making.store(me, tmp_path / "scratch", b"bad model")
    good_job, good = making.inspection(me)
    bad_job, bad = making.inspection(me, content=b"bad model")
    assert perform(good_job) is JobState.SUCCEEDED
    assert perform(bad_job) is JobState.FAILED
    with db.transaction() as session:
        assert session.get_one(Model, good).inspection["parameters"] == 12
        assert session.get_one(Model, bad).failure["code"] == "bad_model"


def test_running_job_is_cancelled_within_seconds(me: Principal) -> None:
    job_id = making.job(me, act="sleep 60")
    thread = performing_in_background(job_id)
    servers.until(lambda: is_told(job_id, "progress"))
    with db.transaction() as session:
        jobs.cancel(session, me, job_id)
    thread.join(timeout=20)
    assert making.row(job_id).state == "cancelled"
    assert work_dir() == []


def test_draining_worker_gives_its_job_back_uncharged(me: Principal) -> None:
    job_id = making.job(me, act="sleep 60")
    thread = performing_in_background(job_id)
    servers.until(lambda: is_told(job_id, "progress"))
    drain.begin()
    thread.join(timeout=20)
    row = making.row(job_id)
    assert (row.state, row.attempt) == ("queued", 0)
    assert last_attempt(job_id).ended == "drained"


def test_what_a_job_measured_of_its_model_is_handed_to_the_next(
    me: Principal, tmp_path: Path
) -> None:
    model_id, data = making.model(me), {"train": making.dataset(me)}
    analyze = {"name": "", "steps": [{"kind": "analyze.sensitivity"}]}
    job_id = making.job(me, model_id=model_id, recipe=analyze, data=data)
    assert perform(job_id) is JobState.SUCCEEDED
    with db.transaction() as session:
        [found] = session.scalars(select(Sensitivity)).all()
        [table, _] = session.scalars(
            select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.format)
        ).all()
    assert (found.job_id, found.model_id) == (job_id, model_id)
    assert (table.name, table.format) == ("sensitivity.json", "json")
    mixed = {"steps": [{"kind": "quantize.bits", "mixed": {"average_bits": 4}}]}
    job_id = making.job(me, model_id=model_id, recipe=mixed, data=data, sensitivity=found.id)
    with db.transaction() as session:
        claim = jobs.claim(session, job_id, owner="w1", sandbox="none")
    assert claim is not None
    (tmp_path / "job").mkdir()
    staging.stage(claim, tmp_path / "job", sandbox="none")
    asked = order.CompressOrder.model_validate_json((tmp_path / "job" / order.ORDER).read_bytes())
    staged = (tmp_path / "job" / asked.sensitivity.path).read_bytes()
    assert spec.Sensitivity.model_validate_json(staged) == actor.table(asked)
    assert making.digest(staged) == asked.sensitivity.sha256


def test_draining_worker_takes_no_job(me: Principal) -> None:
    job_id = making.job(me)
    drain.begin()
    assert perform(job_id) is None
    assert making.row(job_id).state == "queued"


def test_fenced_off_worker_writes_nothing(me: Principal) -> None:
    job_id = making.job(me, act="sleep 60")
    thread = performing_in_background(job_id)
    servers.until(lambda: is_told(job_id, "progress"))
    with db.transaction() as session:
        row = session.get_one(making.Job, job_id, with_for_update=True)
        row.fence += 1
        row.owner = "w2"
    thread.join(timeout=20)
    row = making.row(job_id)
    assert (row.state, row.owner) == ("running", "w2")
    assert work_dir() == []


def test_job_past_its_runtime_expires(me: Principal) -> None:
    job_id = making.job(me, act="sleep 60", limits={"max_runtime_s": 2})
    assert perform(job_id) is JobState.EXPIRED
    assert making.row(job_id).failure["code"] == "runtime_limit"


def test_damaged_file_in_the_store_is_noticed_before_it_is_used(
    me: Principal, tmp_path: Path
) -> None:
    model_id = making.model(me, content=b"never stored")
    job_id = making.job(me, model_id=model_id)
    assert perform(job_id) is JobState.FAILED
    assert making.row(job_id).failure["code"] == "damaged_file"
    [blob] = tmp_path.rglob(making.digest(making.MODEL_BYTES))
    blob.write_bytes(b"A model")
    job_id = making.job(me)
    assert perform(job_id) is JobState.FAILED
    assert making.row(job_id).failure["code"] == "damaged_file"


def test_job_gets_what_an_upload_was_converted_to(me: Principal, tmp_path: Path) -> None:
    making.store(me, tmp_path / "scratch", b"converted")
    model_id = making.model(me)
    job_id = making.job(me, model_id=model_id)
    with db.transaction() as session:
        session.get_one(Model, model_id).onnx_sha256 = making.digest(b"converted")
        claim = jobs.claim(session, job_id, owner="w1", sandbox="none")
    assert claim is not None
    (tmp_path / "job").mkdir()
    staging.stage(claim, tmp_path / "job", sandbox="none")
    assert (tmp_path / "job/input/model.onnx").read_bytes() == b"converted"
