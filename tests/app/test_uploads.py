"""Uploads over real HTTP: tus 1.0 and plain requests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing

import httpx
import pytest

from app import settings
from tests.app.conftest import Api, new_project
from tests.app.tus import (
    DATA,
    PART,
    TUS,
    b64,
    connect,
    create,
    everything_stored,
    patch,
    sha256,
    stored,
)


def test_file_comes_in_two_parts_and_is_hashed_as_one(any_client: httpx.Client) -> None:
    location = create(any_client, filename="net.onnx")

    first = patch(any_client, location, DATA[:1_000_000], 0)
    between = any_client.head(location, headers=TUS)
    second = patch(any_client, location, DATA[1_000_000:], 1_000_000)

    assert (first.status_code, first.headers["Upload-Offset"]) == (204, "1000000")
    assert between.headers["Upload-Offset"] == "1000000"
    assert between.headers["Upload-Length"] == str(len(DATA))
    assert between.headers["Cache-Control"] == "no-store"
    assert (second.status_code, second.headers["Upload-Offset"]) == (204, str(len(DATA)))
    upload = any_client.get(location).json()
    assert upload["state"] == "completed"
    assert upload["sha256"] == sha256(DATA)
    assert upload["filename"] == "net.onnx"
    assert len(stored(location)) == 1


def test_upload_becomes_a_model_that_downloads_as_it_was(any_client: httpx.Client) -> None:
    location = create(any_client)
    patch(any_client, location, DATA[:7], 0)
    patch(any_client, location, DATA[7:], 7)

    model = any_client.post("/v1/models", json={"upload": location.rpartition("/")[2]})

    assert model.status_code == 201
    content = any_client.get(f"{model.headers['Location']}/content")
    assert content.content == DATA
    assert content.headers["ETag"] == f'"{sha256(DATA)}"'
    assert stored(location) == []
    assert any_client.get(location).json()["state"] == "consumed"


def test_upload_is_consumed_once(client: httpx.Client) -> None:
    upload = client.post("/v1/uploads?filename=d.npz", content=DATA).json()["id"]

    first = client.post("/v1/datasets", json={"upload": upload})
    second = client.post("/v1/datasets", json={"upload": upload})

    assert first.status_code == 201
    assert (second.status_code, second.json()["code"]) == (409, "upload_consumed")


def test_unfinished_upload_makes_no_model(client: httpx.Client) -> None:
    location = create(client)
    patch(client, location, DATA[:10], 0)

    refused = client.post("/v1/models", json={"upload": location.rpartition("/")[2]})

    assert (refused.status_code, refused.json()["code"]) == (409, "upload_incomplete")
    assert "10 of" in refused.json()["detail"]


def test_plain_post_takes_a_whole_file(any_client: httpx.Client) -> None:
    response = any_client.post("/v1/uploads?filename=a/b/net.onnx", content=DATA)

    assert response.status_code == 201
    assert response.json()["state"] == "completed"
    assert response.json()["sha256"] == sha256(DATA)
    assert response.json()["filename"] == "net.onnx"


def test_plain_put_and_chunked_bodies_work(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        yield DATA[:100]
        yield DATA[100:]

    response = client.put("/v1/uploads/net.onnx", content=chunks())

    assert response.status_code == 201
    assert response.json()["size_bytes"] == len(DATA)
    assert response.json()["filename"] == "net.onnx"


def test_creation_brings_first_bytes(client: httpx.Client) -> None:
    headers = {**PART, "Upload-Length": str(len(DATA))}

    response = client.post("/v1/uploads", content=DATA[:500], headers=headers)

    assert (response.status_code, response.headers["Upload-Offset"]) == (201, "500")
    assert "Upload-Expires" in response.headers
    rest = patch(client, response.headers["Location"], DATA[500:], 500)
    assert rest.headers["Upload-Offset"] == str(len(DATA))


def test_options_tell_what_is_spoken(client: httpx.Client) -> None:
    headers = client.options("/v1/uploads").headers

    assert headers["Tus-Version"] == "1.0.0"
    assert set(headers["Tus-Extension"].split(",")) == {
        "creation", "creation-with-upload", "checksum", "expiration", "termination"
    }  # fmt: skip
    assert headers["Tus-Checksum-Algorithm"] == "sha256,sha1"
    assert headers["Tus-Max-Size"] == str(settings.get().max_upload_bytes)


def test_other_version_of_tus_is_refused(client: httpx.Client) -> None:
    response = client.post("/v1/uploads", headers={"Tus-Resumable": "0.2.2", "Upload-Length": "1"})

    assert (response.status_code, response.headers["Tus-Version"]) == (412, "1.0.0")


@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
def test_right_checksum_is_accepted(client: httpx.Client, algorithm: str) -> None:
    location = create(client)
    digest = b64(hashlib.new(algorithm, DATA).digest())

    response = patch(client, location, DATA, 0, Upload_Checksum=f"{algorithm} {digest}")

    assert response.status_code == 204


def test_wrong_checksum_drops_the_part_and_only_the_part(any_client: httpx.Client) -> None:
    location = create(any_client)
    patch(any_client, location, DATA[:1000], 0)
    wrong = f"sha256 {b64(hashlib.sha256(b'other').digest())}"

    refused = patch(any_client, location, DATA[1000:], 1000, Upload_Checksum=wrong)

    assert (refused.status_code, refused.json()["code"]) == (460, "checksum_mismatch")
    assert any_client.head(location).headers["Upload-Offset"] == "1000"
    assert len(stored(location)) == 1
    assert patch(any_client, location, DATA[1000:], 1000).status_code == 204


@pytest.mark.parametrize(
    ("checksum", "code"),
    [
        ("md5 AAAA", "unsupported_checksum"),
        ("sha256 ?", "bad_request"),
        ("sha1 AAAA", "bad_request"),
    ],
)
def test_unusable_checksum_is_refused(client: httpx.Client, checksum: str, code: str) -> None:
    location = create(client)

    refused = patch(client, location, DATA, 0, Upload_Checksum=checksum)

    assert (refused.status_code, refused.json()["code"]) == (400, code)
    assert stored(location) == []


def test_file_with_another_hash_than_announced_is_removed(any_client: httpx.Client) -> None:
    location = create(any_client, sha256=sha256(b"other"))
    patch(any_client, location, DATA[:1000], 0)

    refused = patch(any_client, location, DATA[1000:], 1000)

    assert (refused.status_code, refused.json()["code"]) == (460, "sha256_mismatch")
    assert sha256(DATA) in refused.json()["detail"]
    assert any_client.get(location).status_code == 404
    assert stored(location) == []


def test_plain_file_with_another_hash_leaves_nothing(client: httpx.Client) -> None:
    refused = client.post(f"/v1/uploads?sha256={sha256(b'other')}", content=DATA)

    assert (refused.status_code, refused.json()["code"]) == (460, "sha256_mismatch")
    assert everything_stored() == []


def test_wrong_offset_tells_the_right_one(client: httpx.Client) -> None:
    location = create(client)
    patch(client, location, DATA[:10], 0)

    refused = patch(client, location, DATA[5:], 5)

    assert (refused.status_code, refused.json()["code"]) == (409, "wrong_offset")
    assert refused.headers["Upload-Offset"] == "10"
    assert refused.json()["offset_bytes"] == 10


def test_complete_upload_takes_no_more(client: httpx.Client) -> None:
    location = create(client, size_bytes=3)
    patch(client, location, b"abc", 0)

    refused = patch(client, location, b"d", 3)

    assert (refused.status_code, refused.json()["code"]) == (409, "upload_complete")


def test_more_bytes_than_announced_are_refused(client: httpx.Client) -> None:
    location = create(client, size_bytes=10)

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield DATA[:100_000]

    declared = patch(client, location, DATA[:11], 0)
    headers = {**PART, "Upload-Offset": "0"}
    chunked = client.patch(location, content=endless(), headers=headers)

    assert (declared.status_code, declared.json()["limit_bytes"]) == (413, 10)
    assert (chunked.status_code, chunked.json()["limit_bytes"]) == (413, 10)
    assert client.head(location).headers["Upload-Offset"] == "0"
    assert stored(location) == []


def test_file_over_the_limit_is_refused_however_it_comes(
    configure: Callable[..., None], sqlite_database_url: str, serve: Callable[[], str]
) -> None:
    configure(database_url=sqlite_database_url, max_upload_bytes=1_000_000)
    api = Api(serve(), *new_project("ours"))

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(DATA), 100_000):
            yield DATA[start : start + 100_000]

    with api.client() as client:
        announced = client.post("/v1/uploads", headers={**TUS, "Upload-Length": "1000001"})
        declared = client.post("/v1/uploads", content=DATA)
        chunked = client.post("/v1/uploads", content=chunks())

    for response in (announced, declared, chunked):
        assert (response.status_code, response.json()["code"]) == (413, "too_large")
        assert response.json()["limit_bytes"] == 1_000_000
    assert everything_stored() == []


def test_declared_size_over_the_limit_is_refused_before_the_body_is_read(
    configure: Callable[..., None], sqlite_database_url: str, serve: Callable[[], str]
) -> None:
    configure(database_url=sqlite_database_url, max_upload_bytes=1000)
    api = Api(serve(), *new_project("ours"))

    with closing(connect(api, "POST", "/v1/uploads", {"Content-Length": "1001"})) as sender:
        assert sender.getresponse().status == 413


def test_empty_file_is_refused(client: httpx.Client) -> None:
    plain = client.post("/v1/uploads", content=b"")
    announced = client.post("/v1/uploads", headers={**TUS, "Upload-Length": "0"})

    assert (plain.status_code, plain.json()["code"]) == (400, "empty_file")
    assert (announced.status_code, announced.json()["code"]) == (400, "empty_file")


def test_form_is_not_taken_for_a_file(client: httpx.Client) -> None:
    refused = client.post("/v1/uploads", files={"file": ("net.onnx", DATA)})

    assert refused.status_code == 415
    assert "--data-binary" in refused.json()["hint"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upload-Offset": "0", "Content-Type": "application/json"}, 415),
        ({"Upload-Offset": "-1", "Content-Type": PART["Content-Type"]}, 400),
        ({"Upload-Offset": "9" * 30, "Content-Type": PART["Content-Type"]}, 400),
        ({"Content-Type": PART["Content-Type"]}, 400),
    ],
)
def test_malformed_append_is_refused(
    client: httpx.Client, headers: dict[str, str], status: int
) -> None:
    location = create(client)

    assert client.patch(location, content=b"abc", headers=headers).status_code == status


def test_malformed_metadata_is_refused(client: httpx.Client) -> None:
    headers = {**TUS, "Upload-Length": "5", "Upload-Metadata": "filename ***"}

    refused = client.post("/v1/uploads", headers=headers)

    assert refused.status_code == 400
    assert "filename" in refused.json()["detail"]


def test_termination_removes_the_bytes(any_client: httpx.Client) -> None:
    location = create(any_client)
    patch(any_client, location, DATA[:1000], 0)

    removed = any_client.delete(location, headers=TUS)

    assert removed.status_code == 204
    assert any_client.head(location).status_code == 404
    assert stored(location) == []


def test_method_may_be_overridden(client: httpx.Client) -> None:
    location = create(client, size_bytes=3)
    headers = {**PART, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}

    appended = client.post(location, content=b"abc", headers=headers)
    removed = client.post(location, headers={**TUS, "X-HTTP-Method-Override": "DELETE"})
    neither = client.post(location, headers={**TUS, "X-HTTP-Method-Override": "PUT"})

    assert (appended.status_code, removed.status_code, neither.status_code) == (204, 204, 400)


def test_uploads_of_two_projects_are_strangers(api: Api) -> None:
    _, foreign = new_project("theirs")
    with api.client() as ours, api.client(foreign) as theirs:
        location = create(ours)
        upload = location.rpartition("/")[2]

        answers = [
            theirs.get(location),
            theirs.head(location),
            theirs.delete(location),
            patch(theirs, location, DATA, 0),
            theirs.post("/v1/models", json={"upload": upload}),
        ]

        assert {answer.status_code for answer in answers} == {404}
