"""Uploads against the real service, over a network that breaks."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpress import _upload, errors
from modelpress.client import Client
from tests.client import cutting, little
from tests.conftest import Service

CONTENT = random.Random(1).randbytes(5_000_000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, service.key) as c:
        yield c


def test_upload_is_complete_and_hashed(client: Client, file: Path) -> None:
    heard: list[tuple[int, int]] = []
    upload = client.upload(file, on_progress=lambda *at: heard.append(at))
    assert upload.state == "completed"
    assert upload.filename == "model.onnx"
    assert upload.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert heard[0] == (0, len(CONTENT))
    assert heard[-1] == (len(CONTENT), len(CONTENT))


def test_broken_upload_goes_on(service: Service, file: Path) -> None:
    with (
        cutting.between(service.url, cuts=[2_000_000, 1_500_000]) as proxy,
        Client(proxy.url, service.key, retry_pause_s=0.05) as c,
    ):
        upload = c.upload(file)
        assert proxy.connections >= 3
    assert upload.sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_upload_goes_on_in_another_process(
    client: Client, service: Service, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, size: int) -> None:
        if done > 2_000_000:
            raise Stopped

    monkeypatch.setattr(_upload, "PATCH_BYTES", 1_000_000)
    begun = client.create_upload("model.onnx", len(CONTENT))
    with pytest.raises(Stopped):
        client.upload(file, resume=begun.id, on_progress=stop)
    heard: list[int] = []
    with Client(service.url, service.key) as another:
        upload = another.upload(file, resume=begun.id, on_progress=lambda at, _: heard.append(at))
    assert upload.id == begun.id
    assert upload.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert heard[0] >= 2_000_000


def test_another_file_can_not_take_over_an_upload(client: Client, file: Path) -> None:
    begun = client.create_upload("model.onnx", len(CONTENT) + 1)
    with pytest.raises(ValueError, match="is for a file of 5000001 bytes, this one has 5000000"):
        client.upload(file, resume=begun.id)


def test_file_that_changed_between_two_processes_is_found_out(
    client: Client, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_upload, "PATCH_BYTES", 1_000_000)
    begun = client.create_upload("model.onnx", len(CONTENT))

    def change(done: int, size: int) -> None:
        if done == 1_000_000:
            file.write_bytes(b"x" + CONTENT[1:])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.upload(file, resume=begun.id, on_progress=change)
    with pytest.raises(errors.ChecksumMismatch, match="the upload was removed"):
        client.upload(file, resume=begun.id)
    with pytest.raises(errors.NotFound):
        client.upload_status(begun.id)


def test_empty_file_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with (
        little.serving(little.in_turn(little.problem(500))) as server,
        Client(server.url, "k") as c,
        pytest.raises(ValueError, match="is empty"),
    ):
        c.upload(tmp_path / "empty")
    assert server.requests == []


def test_upload_that_never_gets_on_is_given_up(file: Path) -> None:
    def answer(request: little.Request) -> little.Answer:
        if request.method == "POST":
            return little.Answer(201, headers={"Location": "/v1/uploads/upl_1"})
        if request.method == "HEAD":
            return little.Answer(headers={"Upload-Length": str(len(CONTENT)), "Upload-Offset": "0"})
        return little.problem(423)

    with (
        little.serving(answer) as server,
        Client(server.url, "k", retries=0, retry_pause_s=0.0001) as c,
        pytest.raises(errors.Locked) as caught,
    ):
        c.upload(file)
    assert "resume='upl_1' goes on" in caught.value.__notes__[0]
    assert server.paths().count("PATCH /v1/uploads/upl_1") == _upload.PATIENCE + 1


def test_each_byte_is_hashed_once_in_any_order_of_pieces() -> None:
    source = _upload.Source(io.BytesIO(CONTENT), len(CONTENT))
    for start, stop in ((0, 3_000_000), (1_000_000, 2_000_000), (4_000_000, 5_000_000)):
        assert b"".join(source.piece(start, stop)) == CONTENT[start:stop]
    assert source.sha256() == hashlib.sha256(CONTENT).hexdigest()


def test_file_that_shrinks_while_it_is_sent_is_an_error() -> None:
    source = _upload.Source(io.BytesIO(CONTENT[:100]), 200)
    with pytest.raises(ValueError, match="shrank to 100 of 200 bytes"):
        list(source.piece(0, 200))
