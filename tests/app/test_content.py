"""Downloads: ranges, revalidation by hash, names, and nothing a browser would run."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from app import db, ids, settings, storage, tables
from app.api import content
from modelpress.spec.state import JobState
from tests import actor, servers
from tests.app.conftest import Api, new_project

DATA = bytes(range(256)) * 20_000  # 5 MB: more than one block
SHA256 = hashlib.sha256(DATA).hexdigest()
NAME = 'modèle "v1"\r\nSet-Cookie: x=1.onnx'


@pytest.fixture
def path(client: httpx.Client) -> str:
    return _upload(client)


def _upload(client: httpx.Client) -> str:
    upload = client.post("/v1/uploads", params={"filename": "net.onnx"}, content=DATA).json()["id"]
    model = client.post("/v1/models", json={"upload": upload})
    return f"{model.headers['Location']}/content"


def test_file_comes_whole(any_client: httpx.Client) -> None:
    response = any_client.get(_upload(any_client))

    assert response.status_code == 200
    assert response.content == DATA
    assert response.headers["Content-Length"] == str(len(DATA))
    assert response.headers["ETag"] == f'"{SHA256}"'
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"


def test_head_answers_the_headers_of_get(client: httpx.Client, path: str) -> None:
    whole, head = client.get(path), client.head(path)

    changing = {"date", "x-request-id"}
    assert head.content == b""
    assert {k: v for k, v in head.headers.items() if k not in changing} == {
        k: v for k, v in whole.headers.items() if k not in changing
    }


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=4194300-4194310", 4194300, 4194311),
        ("bytes=5000000-", 5_000_000, len(DATA)),
        ("bytes=-7", len(DATA) - 7, len(DATA)),
        (f"bytes=-{10**18}", 0, len(DATA)),
        (f"bytes=9-{10**18}", 9, len(DATA)),
    ],
)
def test_range_is_served(client: httpx.Client, path: str, asked: str, start: int, end: int) -> None:
    response = client.get(path, headers={"Range": asked})

    assert response.status_code == 206
    assert response.content == DATA[start:end]
    assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    assert response.headers["Content-Length"] == str(end - start)


def test_range_is_served_from_a_bucket(any_client: httpx.Client) -> None:
    response = any_client.get(_upload(any_client), headers={"Range": "bytes=4194300-4194310"})

    assert (response.status_code, response.content) == (206, DATA[4194300:4194311])


@pytest.mark.parametrize("asked", [f"bytes={len(DATA)}-", "bytes=-0", "bytes=99999999-99999999"])
def test_range_behind_the_end_is_refused(client: httpx.Client, path: str, asked: str) -> None:
    response = client.get(path, headers={"Range": asked})

    assert response.status_code == 416
    assert response.headers["Content-Range"] == f"bytes */{len(DATA)}"


@pytest.mark.parametrize(
    "asked",
    ["bytes=9-5", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "bytes=0-" + "9" * 40],
)
def test_range_that_makes_no_sense_gets_the_whole(
    client: httpx.Client, path: str, asked: str
) -> None:
    response = client.get(path, headers={"Range": asked})

    assert (response.status_code, len(response.content)) == (200, len(DATA))


def test_range_counts_only_for_the_file_it_was_begun_on(client: httpx.Client, path: str) -> None:
    same = client.get(path, headers={"Range": "bytes=0-3", "If-Range": f'"{SHA256}"'})
    other = client.get(path, headers={"Range": "bytes=0-3", "If-Range": '"another"'})
    weak = client.get(path, headers={"Range": "bytes=0-3", "If-Range": f'W/"{SHA256}"'})

    assert [r.status_code for r in (same, other, weak)] == [206, 200, 200]


@pytest.mark.parametrize("tag", [f'"{SHA256}"', f'"a", W/"{SHA256}"', "*"])
def test_known_file_is_not_sent_again(client: httpx.Client, path: str, tag: str) -> None:
    response = client.get(path, headers={"If-None-Match": tag, "Range": "bytes=0-3"})

    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["ETag"] == f'"{SHA256}"'


def test_other_tag_gets_the_file(client: httpx.Client, path: str) -> None:
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.fixture
def converted(any_client: httpx.Client) -> str:
    """The address of the file of a model that was converted to the ONNX file DATA[:-1]."""
    path, onnx = _upload(any_client), DATA[:-1]
    with db.transaction() as session:
        model = session.get_one(tables.Model, path.split("/")[3])
        model.state, model.inspection = "ready", actor.MODEL.model_dump(mode="json")
        model.filename, model.onnx_size_bytes = "net.v1.pt2", len(onnx)
        model.onnx_sha256 = hashlib.sha256(onnx).hexdigest()
        key = storage.blob_key(model.project_id, model.onnx_sha256)
    asyncio.run(storage.get().put_stream(key, _blocks(onnx), size_bytes=len(onnx)))
    return path


async def _blocks(data: bytes) -> AsyncIterator[bytes]:
    yield data


def test_onnx_that_an_upload_became_comes_as_a_file_of_its_own(
    any_client: httpx.Client, converted: str
) -> None:
    raw, onnx = any_client.get(converted), any_client.get(f"{converted}?format=onnx")
    head = any_client.head(f"{converted}?format=onnx")

    assert (raw.content, onnx.content) == (DATA, DATA[:-1])
    assert 'filename="net.v1.pt2"' in raw.headers["Content-Disposition"]
    assert 'filename="net.v1.onnx"' in onnx.headers["Content-Disposition"]
    assert head.headers["ETag"] == onnx.headers["ETag"] != raw.headers["ETag"]


def test_onnx_upload_is_what_jobs_use(client: httpx.Client, path: str) -> None:
    refused = client.get(f"{path}?format=onnx")
    with db.transaction() as session:
        model = session.get_one(tables.Model, path.split("/")[3])
        model.state, model.inspection = "ready", actor.MODEL.model_dump(mode="json")

    assert (refused.status_code, refused.json()["code"]) == (409, "model_not_ready")
    assert client.get(f"{path}?format=onnx").content == DATA
    assert client.get(f"{path}?format=pt2").status_code == 422


def test_artifact_is_listed_described_and_downloaded(api: Api) -> None:
    job_id, artifact_id = _artifact(api)
    with api.client() as client:
        listed = client.get(f"/v1/jobs/{job_id}/artifacts").json()
        described = client.get(f"/v1/artifacts/{artifact_id}").json()
        response = client.get(described["links"]["content"])

    assert listed["items"] == [described]
    assert described["sha256"] == SHA256
    assert response.content == DATA


def test_artifact_of_another_project_is_not_found(api: Api) -> None:
    job_id, artifact_id = _artifact(api)
    _, key = new_project("theirs")
    with api.client(key) as stranger:
        for path in (f"artifacts/{artifact_id}", f"jobs/{job_id}/artifacts"):
            assert stranger.get(f"/v1/{path}").status_code == 404
        assert stranger.get(f"/v1/artifacts/{artifact_id}/content").status_code == 404
        assert stranger.head(f"/v1/artifacts/{artifact_id}/content").status_code == 404


def test_lost_file_is_an_error_and_not_a_broken_download(api: Api) -> None:
    _, artifact_id = _artifact(api)
    storage.get().delete(storage.blob_key(api.project_id, SHA256))
    with api.client() as client:
        response = client.get(f"/v1/artifacts/{artifact_id}/content")

    assert response.status_code >= 400
    assert response.headers["Content-Type"] == "application/problem+json"


def test_name_can_not_break_out_of_its_header() -> None:
    header = content.disposition(NAME)

    assert "\r" not in header
    assert "\n" not in header
    assert header.startswith('attachment; filename="mod_le _v1___Set-Cookie_ x_1.onnx"; ')
    assert header.endswith(
        "filename*=UTF-8''mod%C3%A8le%20%22v1%22%0D%0ASet-Cookie%3A%20x%3D1.onnx"
    )


def test_bucket_may_serve_the_file_itself(
    configure: Callable[..., None],
    sqlite_database_url: str,
    s3: servers.S3,
    serve: Callable[[], str],
) -> None:
    configure(database_url=sqlite_database_url, download_redirect=True, **s3.settings)
    with Api(serve(), *new_project("ours")).client() as client:
        response = client.get(_upload(client))

    assert (response.status_code, response.headers["Cache-Control"]) == (307, "no-store")
    served = httpx.get(response.headers["Location"], headers={"Range": "bytes=1-3"})
    assert (served.status_code, served.content) == (206, DATA[1:4])


def _artifact(api: Api) -> tuple[str, str]:
    with db.transaction() as session:
        job = tables.Job(
            id=ids.new("job"),
            project_id=api.project_id,
            request={"model": "m", "recipe": {"steps": [{"kind": "quantize.int8"}]}},
            request_sha256="0" * 64,
            state=JobState.SUCCEEDED.value,
            finished_at=tables.now(),
        )
        session.add(job)
        session.flush()
        artifact = tables.Artifact(
            id=ids.new("art"),
            project_id=api.project_id,
            job_id=job.id,
            name="model.onnx",
            format="onnx",
            sha256=SHA256,
            size_bytes=len(DATA),
        )
        session.add(artifact)
    path = settings.get().home / "artifact"
    path.write_bytes(DATA)
    storage.get().put_file(storage.blob_key(api.project_id, SHA256), path)
    return job.id, artifact.id
