"""Stored files that no row names go; those that a row names, or comes to name at that very moment, stay."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, update

from app import blobs, catalogue, db, ids, storage, sweeper, tables, uploads
from app.accounts import Principal
from app.blobs import Blob
from app.tables import Artifact, Model, Orphan, Upload
from tests import making

WEEK_S = 7 * 86_400


@pytest.fixture
def me(configure: Callable[..., None], database_url: str) -> Principal:
    configure(database_url=database_url, orphans_after_s=WEEK_S)
    return making.principal()


def put(me: Principal, scratch: Path, content: bytes) -> Blob:
    making.store(me, scratch, content)
    return Blob(me.project_id, hashlib.sha256(content).hexdigest())


def is_there(blob: Blob) -> bool:
    return storage.get().has(blob.key)


def let_a_week_pass() -> None:
    with db.transaction() as session:
        session.execute(update(Orphan).values(found_at=db.now(session) - timedelta(days=7)))


def completed(me: Principal, content: bytes, scratch: Path, *, state: str = "completed") -> str:
    """The id of an upload whose bytes have all come."""
    path, upload_id = scratch / "whole", ids.new("upl")
    scratch.mkdir(exist_ok=True)
    path.write_bytes(content)
    storage.get().put_file(f"uploads/{upload_id}/w-whole", path)
    with db.transaction() as session:
        session.add(
            Upload(
                id=upload_id,
                project_id=me.project_id,
                filename="net.onnx",
                size_bytes=len(content),
                offset_bytes=len(content),
                state=state,
                parts=[[f"uploads/{upload_id}/w-whole", len(content)]],
                sha256=hashlib.sha256(content).hexdigest(),
                expires_at=db.now(session) + timedelta(days=1),
            )
        )
    return upload_id


def consume(me: Principal, upload_id: str) -> str:
    """The id of the model that an upload becomes, as the API does it."""
    uploads.keep(me.project_id, upload_id)
    with db.transaction() as session:
        return catalogue.create(session, Model, me.project_id, upload_id=upload_id, name="").id


def test_file_that_no_row_names_goes_after_a_while(me: Principal, tmp_path: Path) -> None:
    blob = put(me, tmp_path / "scratch", b"left behind")
    assert (blobs.mark(), blobs.mark()) == (1, 0)
    assert sweeper.sweep().orphans == 0
    let_a_week_pass()
    assert is_there(blob)
    assert (sweeper.sweep().orphans, sweeper.sweep().orphans) == (1, 0)
    assert not is_there(blob)
    assert list(blobs.unnamed()) == []


def test_file_that_any_row_names_stays(me: Principal, tmp_path: Path) -> None:
    contents = [b"model", b"its onnx", b"dataset", b"artifact", b"upload"]
    files = [put(me, tmp_path / "scratch", content) for content in contents]
    model, converted, dataset, artifact, upload = (blob.sha256 for blob in files)
    job_id = making.job(me)
    with db.transaction() as session:
        owner = {"project_id": me.project_id, "size_bytes": 1}
        named = {**owner, "name": "n", "filename": "f"}
        session.add(Model(id=ids.new("mdl"), sha256=model, onnx_sha256=converted, **named))
        session.add(tables.Dataset(id=ids.new("dat"), sha256=dataset, **named))
        made = Artifact(id=ids.new("art"), job_id=job_id, name="a", format="onnx", **owner)
        made.sha256 = artifact
        session.add(made)
    uploads.keep(me.project_id, completed(me, b"upload", tmp_path / "scratch"))

    assert list(blobs.unnamed()) == []
    assert blobs.mark() == 0
    assert upload == files[-1].sha256
    assert all(map(is_there, files))


def test_named_file_is_not_removed_by_an_old_note(me: Principal, tmp_path: Path) -> None:
    blob = put(me, tmp_path / "scratch", b"again")
    blobs.mark()
    let_a_week_pass()
    consume(me, completed(me, b"again", tmp_path / "scratch"))

    assert blobs.remove() == 0
    assert is_there(blob)


def test_time_begins_anew_for_a_file_that_was_named_meanwhile(
    me: Principal, tmp_path: Path
) -> None:
    blob = put(me, tmp_path / "scratch", b"twice")
    blobs.mark()
    let_a_week_pass()
    model_id = consume(me, completed(me, b"twice", tmp_path / "scratch"))
    assert blobs.mark() == 0
    with db.transaction() as session:
        session.execute(delete(Model).where(Model.id == model_id))
    assert blobs.mark() == 1
    assert blobs.remove() == 0
    assert is_there(blob)


def test_files_of_projects_unknown_here_are_left_alone(me: Principal, tmp_path: Path) -> None:
    stranger = Principal(project_id="prj_elsewhere", key_id="", admin=False)
    blob = put(stranger, tmp_path / "scratch", b"theirs")
    storage.get().put_file(f"blobs/{me.project_id}/README", Path(__file__))
    assert list(blobs.unnamed()) == []
    assert blobs.mark() == 0
    assert is_there(blob)


def test_nothing_goes_where_all_is_to_be_kept(
    me: Principal, tmp_path: Path, configure: Callable[..., None]
) -> None:
    configure(orphans_after_s=0)
    blob = put(me, tmp_path / "scratch", b"kept")
    blobs.mark()
    assert sweeper.sweep().orphans == 0
    assert is_there(blob)


def test_equal_file_that_is_uploaded_while_one_is_removed_is_not_lost(
    me: Principal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = put(me, tmp_path / "scratch", b"same")
    blobs.mark()
    let_a_week_pass()
    upload_id = completed(me, b"same", tmp_path / "scratch", state="in_progress")
    deleting, copied = threading.Event(), threading.Event()
    copy, remove = storage.Store.copy, storage.Store.delete

    def slow_delete(self: storage.Store, key: str) -> None:
        if key == blob.key:
            deleting.set()  # no row names the file; now one comes
            copied.wait(1.0)
        remove(self, key)

    def told_copy(self: storage.Store, source: str, target: str, *, size_bytes: int) -> None:
        copy(self, source, target, size_bytes=size_bytes)
        copied.set()

    monkeypatch.setattr(storage.Store, "delete", slow_delete)
    monkeypatch.setattr(storage.Store, "copy", told_copy)
    sweeping = threading.Thread(target=blobs.remove)
    sweeping.start()
    assert deleting.wait(10)
    with db.transaction() as session:
        session.get_one(Upload, upload_id).state = "completed"
    consume(me, upload_id)
    sweeping.join()

    assert is_there(blob)
    assert list(blobs.unnamed()) == []


def test_no_race_of_removals_and_uploads_loses_a_file(
    me: Principal, tmp_path: Path, configure: Callable[..., None]
) -> None:
    """One file is named and forgotten over and over while two sweepers remove it whenever they can."""
    configure(orphans_after_s=1e-6)
    over, lost = threading.Event(), []
    sweepers = [threading.Thread(target=_sweep_until, args=(over,)) for _ in range(2)]
    for each in sweepers:
        each.start()
    try:
        for _ in range(12):
            upload_id = completed(me, b"fought over", tmp_path / "scratch")
            model_id = consume(me, upload_id)
            blob = Blob(me.project_id, hashlib.sha256(b"fought over").hexdigest())
            lost += [] if is_there(blob) else [model_id]
            with db.transaction() as session:
                session.execute(delete(Model).where(Model.id == model_id))
    finally:
        over.set()
        for each in sweepers:
            each.join()
    assert lost == []
    blobs.mark()
    blobs.remove()
    assert not is_there(blob)


def _sweep_until(over: threading.Event) -> None:
    while not over.is_set():
        blobs.mark()
        blobs.remove()
