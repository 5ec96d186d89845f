"""Resumable uploads: tus 1.0, the file read once, its SHA-256 taken on the way and compared at the end."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from modelpress import _transport, errors
from modelpress.resources import Upload

TUS = {"Tus-Resumable": "1.0.0"}
PATCH_BYTES = 4 << 30  # the server keeps what came before a break, and must join pieces at the end
READ_BYTES = 1 << 20
PATIENCE = 8  # fruitless attempts in a row

Told = Callable[[int, int], None]


def send(
    http: _transport.Transport, path: Path, *, filename: str, resume: str | None, told: Told
) -> Upload:
    """Sends a file and answers its complete upload; `told(sent_bytes, size_bytes)` hears how far it is.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is empty, or is not the one whose upload is resumed.
        ChecksumMismatch: what arrived is not what was read; the upload is removed.
    """
    with path.open("rb") as file:
        size_bytes = path.stat().st_size
        if not size_bytes:
            raise ValueError(f"{path} is empty")
        upload_id = resume or create(http, filename, size_bytes)
        source = Source(file, size_bytes)
        _send_all(http, upload_id, source, told)
    return _verified(http, upload_id, source)


class Source:
    """A file that hashes each byte when it is first read, however often pieces of it are sent."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self.file, self.size_bytes = file, size_bytes
        self._hash, self._hashed = hashlib.sha256(), 0

    def piece(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes of [start, stop).

        Raises:
            ValueError: the file has become shorter.
        """
        self._hash_up_to(start)
        self.file.seek(start)
        while start < stop:
            data = self.file.read(min(READ_BYTES, stop - start))
            if not data:
                raise ValueError(f"the file shrank to {start} of {self.size_bytes} bytes")
            self._hash_new(data, start)
            start += len(data)
            yield data

    def sha256(self) -> str:
        """The hash of the whole file, in hex."""
        self._hash_up_to(self.size_bytes)
        return self._hash.hexdigest()

    def _hash_up_to(self, offset: int) -> None:
        while self._hashed < offset:
            self.file.seek(self._hashed)
            data = self.file.read(min(READ_BYTES, offset - self._hashed))
            if not data:
                raise ValueError(f"the file has {self._hashed} bytes, {offset} were sent before")
            self._hash_new(data, self._hashed)

    def _hash_new(self, data: bytes, start: int) -> None:
        new = data[self._hashed - start :] if start < self._hashed else data
        self._hash.update(new)
        self._hashed += len(new)


def create(http: _transport.Transport, filename: str, size_bytes: int) -> str:
    """Announces a file and answers the id of its upload."""
    name = base64.b64encode(filename.encode()).decode()
    headers = {**TUS, "Upload-Length": str(size_bytes), "Upload-Metadata": f"filename {name}"}
    location = http.request("POST", "/v1/uploads", headers=headers).headers.get("Location", "")
    upload_id: str = location.rstrip("/").rpartition("/")[2]
    if not upload_id:
        raise errors.UnexpectedAnswer("POST /v1/uploads answered without a Location")
    return upload_id


def _send_all(http: _transport.Transport, upload_id: str, source: Source, told: Told) -> None:
    """Sends piece after piece; after a broken connection goes on where the server says it is."""
    offset = _offset(http, upload_id, source)
    fruitless = 0
    told(offset, source.size_bytes)
    while offset < source.size_bytes:
        before = offset
        try:
            offset = _patch(http, upload_id, source, offset, told)
        except (errors.Unreachable, errors.Locked, errors.Conflict, errors.ServerFailed) as e:
            if fruitless == PATIENCE:
                e.add_note(f"upload {upload_id} holds {offset} bytes; resume={upload_id!r} goes on")
                raise
            http.pause(fruitless)
            offset = _offset(http, upload_id, source)
        fruitless = 0 if offset > before else fruitless + 1


def _patch(
    http: _transport.Transport, upload_id: str, source: Source, offset: int, told: Told
) -> int:
    stop = min(offset + PATCH_BYTES, source.size_bytes)

    def body() -> Iterator[bytes]:
        sent = offset
        for data in source.piece(offset, stop):
            yield data
            sent += len(data)
            told(sent, source.size_bytes)

    headers = {
        **TUS,
        "Upload-Offset": str(offset),
        "Content-Type": "application/offset+octet-stream",
        "Content-Length": str(stop - offset),
    }
    path = f"/v1/uploads/{upload_id}"
    with http.stream("PATCH", path, headers=headers, content=body()) as response:
        return int(response.headers["Upload-Offset"])


def _offset(http: _transport.Transport, upload_id: str, source: Source) -> int:
    headers = http.request("HEAD", f"/v1/uploads/{upload_id}", headers=TUS).headers
    length = int(headers["Upload-Length"])
    if length != source.size_bytes:
        raise ValueError(
            f"upload {upload_id} is for a file of {length} bytes, this one has {source.size_bytes}"
        )
    return int(headers["Upload-Offset"])


def _verified(http: _transport.Transport, upload_id: str, source: Source) -> Upload:
    path = f"/v1/uploads/{upload_id}"
    upload = _transport.read(http.request("GET", path), Upload)
    sha256 = source.sha256()
    if upload.sha256 == sha256:
        return upload
    http.request("DELETE", path, headers=TUS)
    raise errors.ChecksumMismatch(
        f"upload {upload_id}: the file has SHA-256 {sha256}, the server received {upload.sha256}; "
        "the upload was removed, send the file again"
    )
