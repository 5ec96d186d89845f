"""Safe downloads: into a temporary file beside the target, resumed when broken, hashed, then renamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from modelpress import _transport, errors
from modelpress.resources import Artifact

READ_BYTES = 1 << 20
PATIENCE = 8  # fruitless attempts in a row

Told = Callable[[int, int], None]


def fetch(http: _transport.Transport, artifact: Artifact, directory: Path, *, told: Told) -> Path:
    """Puts an artifact into a directory; `told(received_bytes, size_bytes)` hears how far it is.

    What an earlier, broken download left is continued. The file appears whole or not at all.

    Raises:
        ChecksumMismatch: what arrived is not what the server says it sent.
        UnexpectedAnswer: the server calls it what is no file name, or sends more than it announced.
    """
    target = directory / _file_name(artifact.name)
    directory.mkdir(parents=True, exist_ok=True)
    part = directory / f".{target.name}.{artifact.sha256[:16]}.part"
    with part.open("a+b") as file:
        digest = _receive(http, artifact, file, told)
        file.flush()
        os.fsync(file.fileno())
    if digest != artifact.sha256:
        part.unlink()
        raise errors.ChecksumMismatch(
            f"artifact {artifact.id} ({artifact.name}) has SHA-256 {artifact.sha256}, received "
            f"{digest}; nothing was kept, download it again"
        )
    part.replace(target)
    return target


def write(target: Path, data: bytes) -> Path:
    """Writes a small file as downloads are written: whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    part.write_bytes(data)
    part.replace(target)
    return target


def _receive(http: _transport.Transport, artifact: Artifact, file: BinaryIO, told: Told) -> str:
    """Appends what is missing and answers the SHA-256 of all."""
    received = _Received(file, artifact, told)
    fruitless = 0
    while received.size_bytes < artifact.size_bytes:
        before = received.size_bytes
        try:
            _receive_some(http, artifact, received)
        except (errors.Unreachable, errors.ServerFailed):
            if fruitless == PATIENCE:
                raise
            http.pause(fruitless)
        fruitless = 0 if received.size_bytes > before else fruitless + 1
        if fruitless > PATIENCE:
            raise errors.UnexpectedAnswer(
                f"the server ended the download after {before} of {artifact.size_bytes} bytes"
            )
    return received.hash.hexdigest()


class _Received:
    """The temporary file and the hash of what it holds."""

    def __init__(self, file: BinaryIO, artifact: Artifact, told: Told) -> None:
        self.file, self.told, self.limit_bytes = file, told, artifact.size_bytes
        self.clear() if os.fstat(file.fileno()).st_size > self.limit_bytes else self._count()

    def clear(self) -> None:
        self.file.truncate(0)
        self._count()

    def append(self, data: bytes) -> None:
        if self.size_bytes + len(data) > self.limit_bytes:
            raise errors.UnexpectedAnswer(
                f"the server sends more than the {self.limit_bytes} bytes it announced"
            )
        self.file.write(data)
        self.hash.update(data)
        self.size_bytes += len(data)
        self.told(self.size_bytes, self.limit_bytes)

    def _count(self) -> None:
        self.hash, self.size_bytes = hashlib.sha256(), 0
        self.file.seek(0)
        while data := self.file.read(READ_BYTES):
            self.hash.update(data)
            self.size_bytes += len(data)


def _receive_some(http: _transport.Transport, artifact: Artifact, received: _Received) -> None:
    headers = {"Accept-Encoding": "identity"}
    if received.size_bytes:
        headers["Range"] = f"bytes={received.size_bytes}-"
        headers["If-Range"] = f'"{artifact.sha256}"'
    path = f"/v1/artifacts/{artifact.id}/content"
    with http.stream("GET", path, headers=headers, follow_redirects=True) as response:
        if received.size_bytes and response.status_code != 206:
            received.clear()
        for data in response.iter_bytes():
            received.append(data)


def _file_name(name: str) -> str:
    """The name, if it is one: the server must not choose where a file lands."""
    if name in {"", ".", ".."} or Path(name).name != name or "\\" in name or "\0" in name:
        raise errors.UnexpectedAnswer(
            f"the server calls an artifact {name!r}, which is no file name"
        )
    return name
