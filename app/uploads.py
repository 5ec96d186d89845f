"""The life of an upload: created, written part after part by one writer at a time, completed, consumed once.

    in_progress --last byte--> completed --keep, consume--> consumed
         |                         |                            |
         +---------- removed: on request, or after expires_at --+

Each request's bytes become one object below uploads/ID/. A writer holds a lease on the row; whoever lost it is
told so by Locked and its bytes do not count. The objects are deleted before the row, so none is ever left behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app import blobs, db, errors, ids, settings, storage
from app.tables import Upload

LEASE_S = 40.0
_EXPIRED_AT_ONCE = 20


@dataclass(frozen=True)
class Writing:
    """The right to append to an upload, worth nothing once another writer has taken over."""

    upload_id: str
    writer: str
    offset_bytes: int
    size_bytes: int
    parts: Sequence[tuple[str, int]]

    @property
    def room_bytes(self) -> int:
        """How many bytes are still to come."""
        return self.size_bytes - self.offset_bytes

    @property
    def part_key(self) -> str:
        """Where this writer's bytes go."""
        return f"{_folder(self.upload_id)}{self.writer}"

    @property
    def file_key(self) -> str:
        """Where the parts go when they become one."""
        return f"{self.part_key}-whole"


def create(
    session: Session,
    project_id: str,
    *,
    filename: str,
    size_bytes: int | None,
    sha256: str | None = None,
) -> Upload:
    """Makes an upload without a byte; None is a size that only the end of the bytes tells.

    Raises:
        TooLarge: the size is over the limit.
        BadRequest: the size is 0.
        StorageFull: the store has no room for it.
    """
    limit_bytes = settings.get().max_upload_bytes
    if size_bytes == 0:
        raise errors.BadRequest("the file is empty", code="empty_file")
    if size_bytes is not None:
        if size_bytes > limit_bytes:
            raise too_large(size_bytes)
        storage.get().require_room(size_bytes)
    now = db.now(session)
    upload = Upload(
        id=ids.new("upl"),
        project_id=project_id,
        filename=filename,
        size_bytes=limit_bytes if size_bytes is None else size_bytes,
        expected_sha256=sha256,
        created_at=now,
        expires_at=now + _lifetime(),
    )
    session.add(upload)
    session.flush()
    return upload


def too_large(size_bytes: int) -> errors.TooLarge:
    """The refusal of a file over the limit."""
    limit_bytes = settings.get().max_upload_bytes
    return errors.TooLarge(
        f"the file has {size_bytes} bytes or more; at most {limit_bytes} are taken",
        hint="the limit is the setting MODELPRESS_MAX_UPLOAD_BYTES",
        extra={"limit_bytes": limit_bytes},
    )


def get(session: Session, project_id: str, upload_id: str, *, lock: bool = False) -> Upload:
    """An upload of a project.

    Raises:
        NotFound: the project has no such upload.
    """
    mine = select(Upload).where(Upload.id == upload_id, Upload.project_id == project_id)
    found = session.scalars(mine.with_for_update() if lock else mine).one_or_none()
    if found is None:
        raise errors.NotFound(
            f"there is no upload {upload_id[:64]!r}", hint="uploads are removed when they expire"
        )
    return found


def open_for_writing(
    session: Session, project_id: str, upload_id: str, *, offset_bytes: int
) -> Writing:
    """Takes the right to append at an offset.

    Raises:
        NotFound: the project has no such upload.
        Gone: the upload has expired.
        Conflict: the upload is complete, or has another offset.
        Locked: another request is writing.
    """
    upload, now = get(session, project_id, upload_id, lock=True), db.now(session)
    at = {"Upload-Offset": str(upload.offset_bytes)}
    if upload.state != "in_progress":
        raise errors.Conflict(
            f"upload {upload.id} is {upload.state}", code="upload_complete", headers=at
        )
    if upload.expires_at <= now:
        raise errors.Gone(f"upload {upload.id} expired at {upload.expires_at:%Y-%m-%d %H:%M} UTC")
    if upload.writer_until is not None and upload.writer_until > now:
        raise errors.Locked(
            f"another request is writing to upload {upload.id}",
            hint="end it, or wait until it falls silent",
            headers={"Retry-After": "1"},
        )
    if upload.offset_bytes != offset_bytes:
        raise errors.Conflict(
            f"upload {upload.id} is at byte {upload.offset_bytes}, not {offset_bytes}",
            code="wrong_offset",
            hint="HEAD tells the offset to go on at",
            headers=at,
            extra={"offset_bytes": upload.offset_bytes},
        )
    upload.writer, upload.writer_until = ids.new("wrt"), now + timedelta(seconds=LEASE_S)
    return Writing(
        upload_id=upload.id,
        writer=upload.writer,
        offset_bytes=upload.offset_bytes,
        size_bytes=upload.size_bytes,
        parts=tuple((key, size_bytes) for key, size_bytes in upload.parts),
    )


def renew(session: Session, writing: Writing) -> None:
    """Keeps the right to append for another lease.

    Raises:
        Locked: another writer has taken over.
    """
    upload = _held(session, writing)
    upload.writer_until = db.now(session) + timedelta(seconds=LEASE_S)


def release(session: Session, writing: Writing) -> None:
    """Gives the right to append back, if it still is ours."""
    upload = session.get(Upload, writing.upload_id, with_for_update=True)
    if upload is not None and upload.writer == writing.writer:
        upload.writer = upload.writer_until = None


def add_part(session: Session, writing: Writing, size_bytes: int) -> Upload:
    """Counts the bytes that `writing.part_key` holds, which may be none, and ends the writing.

    Raises:
        Locked: another writer has taken over.
    """
    upload, now = _held(session, writing), db.now(session)
    if size_bytes:
        upload.parts = [*upload.parts, [writing.part_key, size_bytes]]
        upload.offset_bytes += size_bytes
        upload.expires_at = now + _lifetime()
    upload.writer = upload.writer_until = None
    return upload


def complete(
    session: Session, writing: Writing, *, key: str, size_bytes: int, sha256: str
) -> Upload:
    """Notes that the object at `key` is the whole file, and ends the writing.

    Raises:
        Locked: another writer has taken over.
        ChecksumMismatch: the file is not the one that was announced; the caller discards it.
    """
    upload = _held(session, writing)
    if upload.expected_sha256 not in (None, sha256):
        raise errors.ChecksumMismatch(
            f"the file has SHA-256 {sha256}, announced was {upload.expected_sha256}",
            code="sha256_mismatch",
            hint="the upload was removed; check the file and send it again",
        )
    upload.parts, upload.sha256, upload.state = [[key, size_bytes]], sha256, "completed"
    upload.offset_bytes = upload.size_bytes = size_bytes
    upload.expires_at = db.now(session) + _lifetime()
    upload.writer = upload.writer_until = None
    return upload


def discard(session: Session, writing: Writing) -> None:
    """Removes the upload, if it still is ours."""
    upload = session.get(Upload, writing.upload_id, with_for_update=True)
    if upload is not None and upload.writer == writing.writer:
        _remove(session, upload)


def remove(session: Session, project_id: str, upload_id: str) -> None:
    """Removes an upload and its bytes; what was made of it stays.

    Raises:
        NotFound: the project has no such upload.
        Locked: a request is writing to it.
    """
    upload = get(session, project_id, upload_id, lock=True)
    if upload.writer_until is not None and upload.writer_until > db.now(session):
        raise errors.Locked(f"a request is writing to upload {upload.id}", hint="end it first")
    _remove(session, upload)


def expire(session: Session) -> int:
    """Removes some uploads whose time is over, and answers how many; safe to run anywhere, any number of times."""
    now = db.now(session)
    over = (
        select(Upload)
        .where(Upload.expires_at <= now)
        .where(or_(Upload.writer_until.is_(None), Upload.writer_until <= now))
        .limit(_EXPIRED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    expired = session.scalars(over).all()
    for upload in expired:
        _remove(session, upload)
    return len(expired)


def keep(project_id: str, upload_id: str) -> None:
    """Copies the file to where models and datasets have theirs. Takes long for large files in a bucket, so it is done
    before the transaction that consumes the upload.

    Raises:
        NotFound: the project has no such upload.
        Conflict: the upload is not complete, or was consumed.
    """
    blobs.stored(partial(_keep, project_id, upload_id))


def _keep(project_id: str, upload_id: str) -> None:
    with db.transaction() as session:
        upload = _completed(session, project_id, upload_id)
        sha256, parts = upload.sha256 or "", upload.parts
    if not parts:
        return
    [[key, size_bytes]] = parts
    storage.get().copy(key, storage.blob_key(project_id, sha256), size_bytes=size_bytes)
    with db.transaction() as session:
        upload = _completed(session, project_id, upload_id)
        blobs.hold(session, project_id, sha256)
        upload.parts = []


def consume(session: Session, project_id: str, upload_id: str) -> Upload:
    """Turns a completed upload, whose file `keep` has put in its place, into something else: possible once.

    Raises:
        NotFound: the project has no such upload.
        Conflict: the upload is not complete, or was consumed.
    """
    upload = _completed(session, project_id, upload_id)
    assert not upload.parts, "keep comes before consume"
    upload.state = "consumed"
    db.on_commit(session, lambda: storage.get().delete_below(_folder(upload_id)))
    return upload


def _completed(session: Session, project_id: str, upload_id: str) -> Upload:
    upload = get(session, project_id, upload_id, lock=True)
    if upload.state == "in_progress":
        raise errors.Conflict(
            f"upload {upload.id} has {upload.offset_bytes} of {upload.size_bytes} bytes",
            code="upload_incomplete",
            hint="send the rest first",
        )
    if upload.state == "consumed":
        raise errors.Conflict(
            f"upload {upload.id} was used already", code="upload_consumed", hint="upload it again"
        )
    return upload


def _held(session: Session, writing: Writing) -> Upload:
    upload = session.get(Upload, writing.upload_id, with_for_update=True)
    if upload is None or upload.writer != writing.writer:
        raise errors.Locked(f"another request has taken over upload {writing.upload_id}")
    return upload


def _remove(session: Session, upload: Upload) -> None:
    storage.get().delete_below(_folder(upload.id))
    session.delete(upload)


def _folder(upload_id: str) -> str:
    return f"uploads/{upload_id}/"


def _lifetime() -> timedelta:
    return timedelta(seconds=settings.get().upload_expires_s)
