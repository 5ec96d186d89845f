"""Safe downloads: into a temporary file beside the target, resumed when broken, hashed, then renamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from modelpress import _transport, errors
from modelpress.resources import Artifact, Model

READ_BYTES = 1 << 20
PATIENCE = 8  # fruitless attempts in a row

Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Source:
    """A file on the server: where it is, and what it is to be."""

    path: str
    name: str
    sha256: str
    size_bytes: int
    params: Mapping[str, str] = field(default_factory=dict)


def of_artifact(known: Artifact) -> Source:
    """The file of an artifact."""
    return Source(f"/v1/artifacts/{known.id}/content", known.name, known.sha256, known.size_bytes)


def of_model(known: Model, format_: str) -> Source:
    """The file of a model as it was uploaded, or with format 'onnx' as what jobs use."""
    name, sha256, size_bytes = known.filename, known.sha256, known.size_bytes
    if format_ == "onnx" and known.onnx_sha256 is not None and known.onnx_size_bytes is not None:
        name = f"{Path(name).stem}.onnx"
        sha256, size_bytes = known.onnx_sha256, known.onnx_size_bytes
    path = f"/v1/models/{known.id}/content"
    return Source(path, name, sha256, size_bytes, {"format": format_})


def fetch(http: _transport.Transport, source: Source, directory: Path, *, told: Told) -> Path:
    """Puts a file into a directory; `told(received_bytes, size_bytes)` hears how far it is.

    What an earlier, broken download left is continued. The file appears whole or not at all.

    Raises:
        ChecksumMismatch: what arrived is not what the server says it sent.
        UnexpectedAnswer: the server calls it what is no file name, or sends more than it announced.
    """
    target = directory / _file_name(source.name)
    directory.mkdir(parents=True, exist_ok=True)
    part = directory / f".{target.name}.{source.sha256[:16]}.part"
    with part.open("a+b") as file:
        digest = _receive(http, source, file, told)
        file.flush()
        os.fsync(file.fileno())
    if digest != source.sha256:
        part.unlink()
        raise errors.ChecksumMismatch(
            f"{source.name} at {source.path} has SHA-256 {source.sha256}, received {digest}; "
            "nothing was kept, download it again"
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


def _receive(http: _transport.Transport, source: Source, file: BinaryIO, told: Told) -> str:
    """Appends what is missing and answers the SHA-256 of all."""
    received = _Received(file, source, told)
    fruitless = 0
    while received.size_bytes < source.size_bytes:
        before = received.size_bytes
        try:
            _receive_some(http, source, received)
        except (errors.Unreachable, errors.ServerFailed):
            if fruitless == PATIENCE:
                raise
            http.pause(fruitless)
        fruitless = 0 if received.size_bytes > before else fruitless + 1
        if fruitless > PATIENCE:
            raise errors.UnexpectedAnswer(
                f"the server ended the download after {before} of {source.size_bytes} bytes"
            )
    return received.hash.hexdigest()


class _Received:
    """The temporary file and the hash of what it holds."""

    def __init__(self, file: BinaryIO, source: Source, told: Told) -> None:
        self.file, self.told, self.limit_bytes = file, told, source.size_bytes
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


def _receive_some(http: _transport.Transport, source: Source, received: _Received) -> None:
    headers = {"Accept-Encoding": "identity"}
    if received.size_bytes:
        headers["Range"] = f"bytes={received.size_bytes}-"
        headers["If-Range"] = f'"{source.sha256}"'
    asked = {"headers": headers, "params": source.params}
    with http.stream("GET", source.path, follow_redirects=True, **asked) as response:
        if received.size_bytes and response.status_code != 206:
            received.clear()
        for data in response.iter_bytes():
            received.append(data)


def _file_name(name: str) -> str:
    """The name, if it is one: the server must not choose where a file lands."""
    if name in {"", ".", ".."} or Path(name).name != name or "\\" in name or "\0" in name:
        raise errors.UnexpectedAnswer(f"the server calls a file {name!r}, which is no file name")
    return name
