"""Bytes on their way from a client into the store: hashed while they come, never held in memory.

A connection that breaks or falls silent ends the part, and what has come counts: the client goes on from there.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

import anyio
from anyio import to_thread
from sqlalchemy.orm import Session

from app import db, errors, storage, uploads
from app.tables import Upload
from app.uploads import Writing

SILENCE_S = 30.0
_RENEW_S = 5.0
_BLOCK_BYTES = 1 << 20

P = ParamSpec("P")
T = TypeVar("T")


class Cut(Exception):
    """The client went away in the middle."""


@dataclass(frozen=True)
class Checksum:
    """What a client says its bytes hash to."""

    algorithm: str
    digest: bytes


@dataclass(frozen=True)
class Body:
    """The bytes of one request; iterating `chunks` raises Cut when the client goes away.

    `whole`: this request brings the file from its first byte to its last, so half of it is worth nothing.
    """

    chunks: AsyncIterator[bytes]
    declared_bytes: int | None
    checksum: Checksum | None = None
    whole: bool = False


async def append(project_id: str, upload_id: str, offset_bytes: int, body: Body) -> Upload:
    """Writes a request's bytes at an offset, and completes the upload when the last one has come.

    Raises:
        NotFound, Gone, Conflict, Locked: see `uploads.open_for_writing`.
        TooLarge: more bytes than the upload has room for.
        ChecksumMismatch: the bytes are not those that were sent; with the file's own hash wrong, the upload is removed.
        Gone: the store has lost what came before; the upload is removed.
        BadRequest: a `whole` body ended early; the upload is removed.
    """
    writing = await _transact(
        uploads.open_for_writing, project_id, upload_id, offset_bytes=offset_bytes
    )
    try:
        return await _append(writing, body)
    except BaseException as e:
        hopeless = isinstance(e, errors.AppError) and e.code in (
            "sha256_mismatch",
            "upload_damaged",
        )
        with anyio.CancelScope(shield=True):
            await _give_up(writing, remove=body.whole or hopeless)
        raise


async def _append(writing: Writing, body: Body) -> Upload:
    if (body.declared_bytes or 0) > writing.room_bytes:
        raise _no_room(writing, body.declared_bytes or 0)
    flow = _Flow(writing, body)
    size_bytes = body.declared_bytes or writing.room_bytes
    await storage.get().put_stream(writing.part_key, flow.blocks(), size_bytes=size_bytes)
    flow.check()
    if body.whole or flow.seen_bytes == writing.room_bytes:
        return await _complete(writing, flow)
    if not flow.seen_bytes:
        await storage.get().delete_async(writing.part_key)
    return await _transact(uploads.add_part, writing, flow.seen_bytes)


async def _complete(writing: Writing, flow: _Flow) -> Upload:
    key, sha256 = writing.part_key, flow.sha256.hexdigest()
    size_bytes = writing.offset_bytes + flow.seen_bytes
    if writing.parts:
        key = writing.file_key
        await to_thread.run_sync(_require_parts, writing)
        joint = _Joint(writing, [*writing.parts, (writing.part_key, flow.seen_bytes)])
        await storage.get().put_stream(key, joint.blocks(), size_bytes=size_bytes)
        sha256 = joint.sha256.hexdigest()
    await storage.get().settle(key)
    upload = await _transact(
        uploads.complete, writing, key=key, size_bytes=size_bytes, sha256=sha256
    )
    if writing.parts:
        for part, _ in [*writing.parts, (writing.part_key, 0)]:
            await storage.get().delete_async(part)
    return upload


def _require_parts(writing: Writing) -> None:
    """Raises Gone where a power failure took parts: only whole files are forced to disk, not each part of one."""
    for key, size_bytes in writing.parts:
        try:
            seen_bytes = storage.get().size_bytes(key)
        except errors.NotFound:
            seen_bytes = 0
        if seen_bytes != size_bytes:
            raise errors.Gone(
                f"upload {writing.upload_id} has lost {size_bytes - seen_bytes} bytes that came before",
                code="upload_damaged",
                hint="the upload was removed; start it again",
            )


async def _give_up(writing: Writing, *, remove: bool) -> None:
    if remove:
        await _transact(uploads.discard, writing)
        return
    await storage.get().delete_async(writing.part_key)
    await storage.get().delete_async(writing.file_key)
    await _transact(uploads.release, writing)


class _Flow:
    """The bytes of a request in blocks, counted and hashed, while the lease is renewed."""

    def __init__(self, writing: Writing, body: Body) -> None:
        self._writing, self._body = writing, body
        self.seen_bytes, self.is_cut = 0, False
        self.sha256 = hashlib.sha256()
        self._checksum = hashlib.new(body.checksum.algorithm) if body.checksum else None
        self._hashing: asyncio.Future[None] | None = None
        self._lease = _Lease(writing)

    async def blocks(self) -> AsyncIterator[bytes]:
        """Blocks of about a MiB: a step into the store for each of the network's chunks would be slow."""
        pending: list[bytes] = []
        pending_bytes = 0
        async for chunk in self._chunks():
            pending.append(chunk)
            pending_bytes += len(chunk)
            if pending_bytes >= _BLOCK_BYTES:
                yield await self._take(pending)
                pending, pending_bytes = [], 0
        if pending:
            yield await self._take(pending)
        await self._hashed()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            try:
                with anyio.fail_after(SILENCE_S):
                    chunk = await anext(self._body.chunks, b"")
            except (Cut, TimeoutError):
                self.is_cut = True
                return
            if not chunk:
                return
            self.seen_bytes += len(chunk)
            if self.seen_bytes > self._writing.room_bytes:
                raise _no_room(self._writing, self.seen_bytes)
            yield chunk

    async def _take(self, pending: list[bytes]) -> bytes:
        await self._lease.renew_when_due()
        block = b"".join(pending)
        await self._hashed()
        self._hashing = asyncio.get_running_loop().run_in_executor(None, self._hash, block)
        return block

    async def _hashed(self) -> None:
        """Waits for the block before, which was hashed in a thread while this one came."""
        if self._hashing is not None:
            await self._hashing

    def _hash(self, block: bytes) -> None:
        self.sha256.update(block)
        if self._checksum is not None:
            self._checksum.update(block)

    def check(self) -> None:
        """Raises ChecksumMismatch or BadRequest where what came is not what was to come."""
        asked = self._body.checksum
        if asked and self._checksum and self._checksum.digest() != asked.digest:
            raise errors.ChecksumMismatch(
                f"the {self.seen_bytes} bytes hash to another {asked.algorithm} than Upload-Checksum says",
                hint="nothing of this request was kept; send it again",
            )
        if self._body.whole and (self.is_cut or not self.seen_bytes):
            raise errors.BadRequest(
                f"the file ended after {self.seen_bytes} bytes",
                code="truncated",
                hint="send it again, or use a resumable upload",
            )


class _Joint:
    """The parts of a file as one, hashed, while the lease is renewed."""

    def __init__(self, writing: Writing, parts: list[tuple[str, int]]) -> None:
        self._parts, self._lease = parts, _Lease(writing)
        self.sha256 = hashlib.sha256()

    async def blocks(self) -> AsyncIterator[bytes]:
        """The bytes of all parts, in order."""
        for key, size_bytes in self._parts:
            async for block in storage.get().stream(key, 0, size_bytes):
                await self._lease.renew_when_due()
                self.sha256.update(block)
                yield block


class _Lease:
    """Renews a writing's lease now and then."""

    def __init__(self, writing: Writing) -> None:
        self._writing, self._renewed = writing, time.monotonic()

    async def renew_when_due(self) -> None:
        """Raises Locked where another writer has taken over."""
        if time.monotonic() - self._renewed > _RENEW_S:
            await _transact(uploads.renew, self._writing)
            self._renewed = time.monotonic()


def _no_room(writing: Writing, size_bytes: int) -> errors.TooLarge:
    return errors.TooLarge(
        f"{size_bytes} bytes or more came, upload {writing.upload_id} has room for {writing.room_bytes}",
        hint="the whole file must have the length that was announced",
        extra={"limit_bytes": writing.room_bytes},
    )


async def _transact(
    deed: Callable[Concatenate[Session, P], T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Runs a deed in a transaction of its own, away from the event loop."""

    def transact() -> T:
        with db.transaction() as session:
            return deed(session, *args, **kwargs)

    return await to_thread.run_sync(transact)
