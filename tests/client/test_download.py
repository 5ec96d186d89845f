from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from modelpress import _download, errors
from modelpress.client import Client
from modelpress.resources import Artifact
from tests.client import little

CONTENT = random.Random(0).randbytes(3_000_000)


def artifact(content: bytes = CONTENT, **changes: object) -> Artifact:
    known = {
        "id": "art_1",
        "name": "model.onnx",
        "format": "onnx",
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return Artifact.model_validate(known | changes)


def ranged(request: little.Request, content: bytes = CONTENT) -> little.Answer:
    """What a right server answers."""
    if "Range" not in request.headers:
        return little.Answer(200, content)
    start = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
    return little.Answer(206, content[start:])


def client(url: str) -> Client:
    return Client(url, "k", retries=0, retry_pause_s=0.001)


def part_of(directory: Path, known: Artifact) -> Path:
    return directory / f".model.onnx.{known.sha256[:16]}.part"


def test_file_appears_whole_and_alone(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    with little.serving(ranged) as server, client(server.url) as c:
        path = c.download(artifact(), tmp_path / "new", on_progress=lambda *at: heard.append(at))
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert heard[-1] == (len(CONTENT), len(CONTENT))


def test_broken_download_goes_on_where_it_broke(tmp_path: Path) -> None:
    def breaking(request: little.Request) -> little.Answer:
        answer = ranged(request)
        return answer._replace(body=answer.body[:1_000_000], claims=len(answer.body))

    with little.serving(breaking) as server, client(server.url) as c:
        path = c.download(artifact(), tmp_path)
    assert path.read_bytes() == CONTENT
    resumed = [r.headers.get("Range") for r in server.requests]
    assert resumed == [None, "bytes=1000000-", "bytes=2000000-"]
    assert server.requests[1].headers["If-Range"] == f'"{artifact().sha256}"'


def test_download_goes_on_in_another_process(tmp_path: Path) -> None:
    known = artifact()
    part_of(tmp_path, known).write_bytes(CONTENT[:1234])
    with little.serving(ranged) as server, client(server.url) as c:
        assert c.download(known, tmp_path).read_bytes() == CONTENT
    assert server.requests[0].headers["Range"] == "bytes=1234-"


def test_what_was_received_before_is_dropped_when_the_server_starts_anew(tmp_path: Path) -> None:
    known = artifact()
    part_of(tmp_path, known).write_bytes(b"old" * 100)
    with little.serving(lambda _: little.Answer(200, CONTENT)) as server, client(server.url) as c:
        assert c.download(known, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [len(CONTENT) + 5, len(CONTENT)])
def test_leftover_of_another_file_is_found_out(tmp_path: Path, left: int) -> None:
    known = artifact()
    part_of(tmp_path, known).write_bytes(bytes(left))
    with little.serving(ranged) as server, client(server.url) as c:
        if left == len(CONTENT):
            with pytest.raises(errors.ChecksumMismatch):
                c.download(known, tmp_path)
        assert c.download(known, tmp_path).read_bytes() == CONTENT


def test_changed_bytes_are_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    flipped = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    with (
        little.serving(lambda r: ranged(r, flipped)) as server,
        client(server.url) as c,
        pytest.raises(errors.ChecksumMismatch, match="nothing was kept"),
    ):
        c.download(artifact(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_file_that_is_there_stays_when_the_download_fails(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"earlier")
    with (
        little.serving(lambda r: ranged(r, bytes(len(CONTENT)))) as server,
        client(server.url) as c,
        pytest.raises(errors.ChecksumMismatch),
    ):
        c.download(artifact(), tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == b"earlier"


def test_more_bytes_than_announced_are_refused(tmp_path: Path) -> None:
    with (
        little.serving(lambda r: ranged(r, CONTENT + b"x")) as server,
        client(server.url) as c,
        pytest.raises(errors.UnexpectedAnswer, match="more than the 3000000 bytes"),
    ):
        c.download(artifact(), tmp_path)


def test_server_that_never_sends_the_rest_is_given_up(tmp_path: Path) -> None:
    with (
        little.serving(lambda _: little.Answer(206)) as server,
        client(server.url) as c,
        pytest.raises(errors.UnexpectedAnswer, match="ended the download after 0 of 3000000"),
    ):
        c.download(artifact(), tmp_path)
    assert len(server.requests) == _download.PATIENCE + 1


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc/x", "a/b", "a\\b", "a\0b"])
def test_server_can_not_choose_where_a_file_lands(tmp_path: Path, name: str) -> None:
    with (
        little.serving(ranged) as server,
        client(server.url) as c,
        pytest.raises(errors.UnexpectedAnswer, match="no file name"),
    ):
        c.download(artifact(name=name), tmp_path)
    assert server.requests == []


def test_onnx_file_of_a_converted_model_has_its_own_hash_and_name(tmp_path: Path) -> None:
    onnx, raw = CONTENT, b"archive"
    model = {
        "id": "mdl_1",
        "name": "net",
        "state": "ready",
        "filename": "net.pt2",
        "sha256": hashlib.sha256(raw).hexdigest(),
        "size_bytes": len(raw),
        "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
        "onnx_size_bytes": len(onnx),
    }

    def answer(request: little.Request) -> little.Answer:
        if "/content" not in request.path:
            return little.of(model)
        return ranged(request, onnx if request.path.endswith("?format=onnx") else raw)

    with little.serving(answer) as server, client(server.url) as c:
        made = c.download_model("mdl_1", tmp_path, format="onnx")
        sent = c.download_model("mdl_1", tmp_path)
    assert (made.name, made.read_bytes()) == ("net.onnx", onnx)
    assert (sent.name, sent.read_bytes()) == ("net.pt2", raw)
