"""Where bytes live: a local directory or an S3 bucket, behind one interface.

Blobs are named by project and SHA-256: equal files of a project are one object, and nothing a client says becomes
a path. obstore hangs in a forked child whose parent used it, so a Celery parent must not touch a store.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

import obstore
from anyio import to_thread
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from app import errors, localfile, settings
from app.settings import Settings

if TYPE_CHECKING:
    from obstore import Bytes
    from obstore.store import S3Config

_PART_BYTES = 5 << 20
_READ_BYTES = 2 << 20
_MAX_S3_PARTS = 10_000
_MAX_S3_COPY_BYTES = 5 << 30
_RESERVE_RATIO = 0.02
PATIENCE = timedelta(minutes=10)
"""For one request to a bucket: a part of a large file may take long."""
BRIEF = timedelta(seconds=10)
"""For a removal, all tries together: the lock that makes it safe is lost with a transaction that idles for 30 s."""
_RETRIES = timedelta(minutes=3)
_ATTACHMENT = {"Content-Type": "application/octet-stream", "Content-Disposition": "attachment"}


def blob_key(project_id: str, sha256: str) -> str:
    """Where a finished file of a project lives."""
    return f"blobs/{project_id}/{sha256[:2]}/{sha256}"


class Store:
    """A directory or a bucket. Plain methods block; the `async` ones are for the API's event loop.

    Every method raises NotFound where an object is missing, StorageFull where there is no room, and Unavailable
    where the store does not answer.
    """

    def __init__(
        self,
        objects: LocalStore | S3Store,
        root: Path | None,
        brief: S3Store | None = None,
    ) -> None:
        self._objects, self._root = objects, root
        self._brief = brief or objects

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], *, size_bytes: int) -> None:
        """Writes what comes, at most `size_bytes`; the object appears whole or not at all. `settle` makes it last."""
        with _translated(key):
            if self._root is not None:
                await localfile.write(self._root / key, chunks)
                return
            await obstore.put_async(
                self._objects,
                key,
                chunks,
                chunk_size=_part_bytes(size_bytes),
                max_concurrency=2,
                attributes=self._attributes,
            )

    async def settle(self, key: str) -> None:
        """Makes an object that `put_stream` wrote survive a power failure."""
        if self._root is not None:
            with _translated(key):
                await to_thread.run_sync(_sync, self._root / key)

    def put_file(self, key: str, path: Path) -> None:
        """Stores a copy of a local file; it appears whole and on disk, or not at all."""
        with _translated(key):
            obstore.put(
                self._objects,
                key,
                path,
                chunk_size=_part_bytes(path.stat().st_size),
                max_concurrency=2,
                attributes=self._attributes,
            )
            if self._root is not None:
                _sync(self._root / key)

    async def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to `end`, which is not included; one block is read ahead.

        Each block is a request of its own, so a slow reader runs into no timeout of the store.
        """
        ahead = self._begin_block(key, start, end) if start < end else None
        try:
            while ahead is not None:
                with _translated(key):
                    block = await ahead
                start += len(block)
                ahead = self._begin_block(key, start, end) if start < end else None
                yield bytes(block)
        finally:
            if ahead is not None:
                ahead.cancel()

    def _begin_block(self, key: str, start: int, end: int) -> asyncio.Future[Bytes]:
        stop = min(start + _READ_BYTES, end)
        request = obstore.get_range_async(self._objects, key, start=start, end=stop)
        block = asyncio.ensure_future(request)
        block.add_done_callback(lambda done: done.cancelled() or done.exception())
        return block

    def fetch_to_file(self, key: str, path: Path, *, sha256: str = "") -> None:
        """Puts an object at a new path: a hard link where the store is on the same disk, else a copy.

        Raises:
            FileExistsError: there is something at the path.
            Damaged: `sha256` was given and the object's bytes have another.
        """
        with _translated(key):
            if self._root is None or not _link(self._root / key, path):
                with path.open("xb") as file:
                    for chunk in obstore.get(self._objects, key).stream(min_chunk_size=_READ_BYTES):
                        file.write(chunk)
        if sha256 and (seen := hash_file(path)) != sha256:
            path.unlink()
            raise Damaged(f"the stored file {key!r} has SHA-256 {seen}, not {sha256}")

    def copy(self, source: str, target: str, *, size_bytes: int) -> None:
        """Gives an object a second name, in place of what had it; the bytes are shared where the store can."""
        with _translated(source):
            if self._root is None and size_bytes > _MAX_S3_COPY_BYTES:
                chunks = obstore.get(self._objects, source).stream(min_chunk_size=_PART_BYTES)
                obstore.put(self._objects, target, chunks, chunk_size=_part_bytes(size_bytes))
            else:
                obstore.copy(self._objects, source, target)
            if self._root is not None:
                _sync(self._root / target)

    def delete(self, key: str) -> None:
        """Removes an object; a missing one is no error."""
        with _translated(key), _missing_allowed():
            obstore.delete(self._brief, key)

    async def delete_async(self, key: str) -> None:
        """Removes an object; a missing one is no error."""
        with _translated(key), _missing_allowed():
            await obstore.delete_async(self._brief, key)

    def delete_below(self, prefix: str) -> None:
        """Removes every object whose key begins with a prefix that ends in '/'."""
        for key, _ in tuple(self.list(prefix)):
            self.delete(key)
        if self._root is not None:
            with suppress(OSError):  # someone may be writing there
                (self._root / prefix).rmdir()

    def size_bytes(self, key: str) -> int:
        """What an object weighs."""
        with _translated(key):
            return obstore.head(self._objects, key)["size"]

    def has(self, key: str) -> bool:
        """Whether there is such an object."""
        try:
            self.size_bytes(key)
        except errors.NotFound:
            return False
        return True

    def list(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """The keys below a prefix, each with the time it was written."""
        with _translated(prefix):
            for page in obstore.list(self._objects, prefix):
                yield from ((meta["path"], meta["last_modified"]) for meta in page)

    def presigned_url(self, key: str, *, valid: timedelta) -> str | None:
        """A URL that serves the object without a key; None where the store has no such thing."""
        if isinstance(self._objects, LocalStore):
            return None
        with _translated(key):
            return obstore.sign(self._objects, "GET", key, valid)

    def require_room(self, size_bytes: int) -> None:
        """Raises StorageFull where a file of that size would leave a local disk without its reserve."""
        if self._root is None:
            return
        disk = shutil.disk_usage(self._root)
        room_bytes = disk.free - int(disk.total * _RESERVE_RATIO)
        if size_bytes > room_bytes:
            raise errors.StorageFull(
                f"{size_bytes} bytes do not fit into the {max(room_bytes, 0)} bytes the store has left",
                hint="remove files, or give the service a larger disk",
                extra={"free_bytes": max(room_bytes, 0)},
            )

    def check(self) -> None:
        """Raises Unavailable where the store does not answer."""
        with _translated("the store"):
            next(iter(obstore.list(self._objects, "blobs/", chunk_size=1)), None)

    @property
    def _attributes(self) -> dict[str, str] | None:
        return None if isinstance(self._objects, LocalStore) else _ATTACHMENT


class Damaged(Exception):
    """A stored file is not what was stored."""


def get() -> Store:
    """The store of this process."""
    return make_store(settings.get())


@cache
def make_store(values: Settings) -> Store:
    """The store the settings name; nothing is read or written yet.

    Raises:
        ValueError: the URL is neither file:///... nor s3://bucket.
    """
    url = urlsplit(values.resolved_storage_url)
    if url.scheme == "file":
        root = Path(unquote(url.path))
        root.mkdir(parents=True, exist_ok=True)
        return Store(LocalStore(root, mkdir=True), root)
    if url.scheme == "s3" and url.netloc:
        whole, brief = (_bucket(url, values, patience) for patience in (PATIENCE, BRIEF))
        return Store(whole, None, brief)
    raise ValueError(
        f"MODELPRESS_STORAGE_URL {values.storage_url!r} is neither file:///path nor s3://bucket"
    )


def _bucket(url: SplitResult, values: Settings, patience: timedelta) -> S3Store:
    config: S3Config = {"region": values.s3_region}
    if values.s3_endpoint:
        config["endpoint"] = values.s3_endpoint
    if values.s3_access_key_id:
        config["access_key_id"] = values.s3_access_key_id
        config["secret_access_key"] = values.s3_secret_access_key
    return S3Store(
        url.netloc,
        prefix=url.path.strip("/") or None,
        config=config,
        client_options={
            "allow_http": values.s3_endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=5),
            "timeout": patience,
        },
        retry_config={"retry_timeout": min(patience, _RETRIES)},
        disable_bulk_delete=True,
    )


def hash_file(path: Path) -> str:
    """SHA-256 of a local file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _part_bytes(size_bytes: int) -> int:
    """S3 takes at most 10,000 parts."""
    return max(_PART_BYTES, -(-size_bytes // _MAX_S3_PARTS))


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        return False  # another disk, or one without hard links
    return True


def _sync(path: Path) -> None:
    """Forces a file, and its name, to disk."""
    for each in (path, path.parent):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _missing_allowed() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        return


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as e:
        raise errors.NotFound(f"the store has no {key!r}") from e
    except FileExistsError:
        raise
    except (BaseError, OSError) as e:
        if "No space left" in str(e) or "StorageFull" in str(e):
            raise errors.StorageFull("the store has no room left") from e
        raise errors.Unavailable(
            "the store does not answer", hint="try again", headers={"Retry-After": "5"}
        ) from e
