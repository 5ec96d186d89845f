"""Which stored files are in use: those that a row names, by project and SHA-256. The others go, after a while.

    stored, no row names it --mark--> noted --orphans_after_s later--> removed
                                        '--a row names it again--> forgotten

Nothing that a row comes to name is lost, whatever the clocks say. `hold`, in the transaction that makes a row name a file, shares
a lock of the project and looks whether the file is there; a removal has that lock alone while it looks for rows and deletes. So either
the row is seen, or its writer sees that the file is gone and stores it again. On SQLite every transaction is alone. The wait is
for what has a file's name in memory: a worker that is about to fetch it, a backup of the database that will be restored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import TypeVar

from sqlalchemy import delete, select, tuple_, union
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import db, errors, settings, storage
from app.tables import Artifact, Dataset, Model, Orphan, Project, Upload

BATCH = 500
_REMOVED_AT_ONCE = 100
_TRIES = 3

T = TypeVar("T")


class Missing(errors.Unavailable):
    """A file is not in the store: it was removed between its writing and the row that names it. Store it again."""


@dataclass(frozen=True)
class Blob:
    """A stored file, by its name."""

    project_id: str
    sha256: str

    @property
    def key(self) -> str:
        """Where it is in the store."""
        return storage.blob_key(self.project_id, self.sha256)


def hold(session: Session, project_id: str, *sha256s: str) -> None:
    """Makes sure that files which rows of this transaction name are there, and that nobody removes them before it ends.

    Raises:
        Missing: one is not there.
    """
    session.flush()
    session.execute(
        select(Project.id)
        .where(Project.id == project_id)
        .with_for_update(read=True, key_share=True)
    )
    for sha256 in sha256s:
        if not storage.get().has(Blob(project_id, sha256).key):
            raise Missing(
                f"the store has lost the file {sha256}",
                hint="try again",
                headers={"Retry-After": "1"},
            )


def stored(act: Callable[[], T]) -> T:
    """Does what stores files and makes rows name them; again, from the start, where one was removed in between.

    Raises:
        Missing: the store loses what it is given.
    """
    for _ in range(_TRIES - 1):
        with suppress(Missing):
            return act()
    return act()


def unnamed() -> Iterator[Blob]:
    """Stored files of this service's projects that no row names. Those of unknown projects are someone else's."""
    for batch in _stored():
        with db.transaction() as session:
            found = _unnamed(session, batch)
        yield from found


def mark() -> int:
    """Notes files that no row names, forgets those that one names again, and answers how many are new."""
    new = 0
    for batch in _stored():
        with db.transaction() as session:
            found = _unnamed(session, batch)
            new += sum(_note(session, blob) for blob in found)
            _forget(session, set(batch).difference(found))
    return new


def remove() -> int:
    """Removes some of the files that were noted long enough ago, and answers how many; safe to run anywhere, any number of times."""
    with db.transaction() as session:
        before = db.now(session) - timedelta(seconds=settings.get().orphans_after_s)
        due = select(Orphan).where(Orphan.found_at <= before).limit(_REMOVED_AT_ONCE)
        blobs = [Blob(row.project_id, row.sha256) for row in session.scalars(due)]
    return sum(remove_one(blob) for blob in blobs)


def remove_one(blob: Blob) -> bool:
    """Removes a file that was noted, unless a row names it or another sweeper was first; forgets the note."""
    with db.transaction() as session:
        session.execute(select(Project.id).where(Project.id == blob.project_id).with_for_update())
        if not _forget(session, [blob]) or not _unnamed(session, [blob]):
            return False
        storage.get().delete(blob.key)
        return True


def _note(session: Session, blob: Blob) -> bool:
    """Whether the note is new; another sweeper may be at it too."""
    if session.get(Orphan, (blob.project_id, blob.sha256)) is not None:
        return False
    try:
        with session.begin_nested():
            session.add(
                Orphan(project_id=blob.project_id, sha256=blob.sha256, found_at=db.now(session))
            )
    except IntegrityError:
        return False
    return True


def _unnamed(session: Session, blobs: Sequence[Blob]) -> list[Blob]:
    """Those of known projects that no row names."""
    by_project: dict[str, set[str]] = defaultdict(set)
    for blob in blobs:
        by_project[blob.project_id].add(blob.sha256)
    known = session.scalars(select(Project.id).where(Project.id.in_(by_project)))
    left = {id_: by_project[id_] - _named(session, id_, by_project[id_]) for id_ in known}
    return [blob for blob in blobs if blob.sha256 in left.get(blob.project_id, ())]


def _named(session: Session, project_id: str, sha256s: set[str]) -> set[str]:
    """Hashes that a row of the project names. A completed upload names the file that `uploads.keep` makes of it."""
    mine = [
        select(column).where(table.project_id == project_id, column.in_(sha256s))
        for table, column in (
            (Model, Model.sha256),
            (Model, Model.onnx_sha256),
            (Dataset, Dataset.sha256),
            (Artifact, Artifact.sha256),
        )
    ]
    uploads = select(Upload.sha256).where(
        Upload.project_id == project_id, Upload.sha256.in_(sha256s), Upload.state == "completed"
    )
    return {str(sha256) for (sha256,) in session.execute(union(*mine, uploads))}


def _forget(session: Session, blobs: Iterable[Blob]) -> int:
    """How many notes there were; those that another sweeper forgets meanwhile do not count."""
    names = [(blob.project_id, blob.sha256) for blob in blobs]
    noted = tuple_(Orphan.project_id, Orphan.sha256).in_(names)
    gone = delete(Orphan).where(noted).returning(Orphan.sha256)
    return len(session.execute(gone, execution_options={"synchronize_session": False}).all())


def _stored() -> Iterator[list[Blob]]:
    """What is in the store, in parts."""
    found = (_of_key(key) for key, _ in storage.get().list("blobs/"))
    blobs = (blob for blob in found if blob is not None)
    while batch := list(islice(blobs, BATCH)):
        yield batch


def _of_key(key: str) -> Blob | None:
    """The file of a key; None for what we did not put there."""
    parts = key.split("/")
    blob = Blob(parts[1], parts[-1]) if len(parts) == 4 else None
    return blob if blob is not None and blob.key == key else None
