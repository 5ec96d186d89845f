"""Uploads whose connection, client, writer or parts are lost on the way."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta

import httpx
import pytest

from app import db, intake, settings, tables, uploads
from tests.app.conftest import Api
from tests.app.tus import DATA, PART, TUS, connect, create, everything_stored, patch, sha256, stored


def test_what_came_before_the_connection_broke_is_kept(any_api: Api) -> None:
    with any_api.client() as client:
        location = create(client)
        _send_and_break(any_api, "PATCH", location, {**PART, "Upload-Offset": "0"})
        offset = _offset_after(client, location, more_than=0)

        rest = patch(client, location, DATA[offset:], offset)

        assert rest.status_code == 204
        assert client.get(location).json()["sha256"] == sha256(DATA)


def test_plain_upload_that_breaks_leaves_nothing(api: Api) -> None:
    _send_and_break(api, "POST", "/v1/uploads", {})

    _until(lambda: _uploads() == 0)
    assert everything_stored() == []


def test_one_request_writes_at_a_time(api: Api) -> None:
    with api.client() as client:
        location = create(client)
        with _writer(api, location) as writer:
            writer.send(DATA[:2_000_000])
            _until(lambda: _has_writer(location))

            second = patch(client, location, DATA, 0)
            removal = client.delete(location, headers=TUS)
            writer.send(DATA[2_000_000:])

            assert (second.status_code, second.headers["Retry-After"]) == (423, "1")
            assert removal.status_code == 423
            assert writer.getresponse().status == 204
        assert client.get(location).json()["sha256"] == sha256(DATA)


def test_silent_client_is_cut_and_its_bytes_are_kept(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "SILENCE_S", 0.2)
    with api.client() as client:
        location = create(client)
        with _writer(api, location) as writer:
            writer.send(DATA[:1000])
            assert writer.getresponse().getheader("Upload-Offset") == "1000"

        assert patch(client, location, DATA[1000:], 1000).status_code == 204


def test_expired_uploads_are_removed_with_their_bytes(any_client: httpx.Client) -> None:
    expired, current = create(any_client), create(any_client)
    patch(any_client, expired, DATA[:1000], 0)
    with db.transaction() as session:
        row = session.get_one(tables.Upload, expired.rpartition("/")[2])
        row.expires_at = tables.now() - timedelta(seconds=1)

    late = patch(any_client, expired, DATA[1000:], 1000)
    with db.transaction() as session:
        removed = uploads.expire(session)

    assert late.status_code == 410
    assert removed == 1
    assert any_client.get(expired).status_code == 404
    assert any_client.get(current).status_code == 200
    assert stored(expired) == []


def test_writer_whose_lease_ran_out_writes_nothing(api: Api) -> None:
    with api.client() as client:
        location = create(client)
        with _writer(api, location) as writer:
            writer.send(DATA[:1000])
            _until(lambda: _has_writer(location))
            with db.transaction() as session:
                row = session.get_one(tables.Upload, location.rpartition("/")[2])
                row.writer_until = tables.now()

            assert patch(client, location, DATA, 0).status_code == 204
            writer.send(DATA[1000:])
            assert writer.getresponse().status == 423

        assert client.get(location).json()["sha256"] == sha256(DATA)


def test_upload_whose_parts_were_lost_is_given_up(client: httpx.Client) -> None:
    location = create(client)
    patch(client, location, DATA[:1000], 0)
    [part] = stored(location)
    (settings.get().home / "files" / part).write_bytes(DATA[:10])  # as a power failure may leave it

    refused = patch(client, location, DATA[1000:], 1000)

    assert (refused.status_code, refused.json()["code"]) == (410, "upload_damaged")
    assert "990 bytes" in refused.json()["detail"]
    assert client.get(location).status_code == 404
    assert stored(location) == []


def _writer(api: Api, location: str) -> closing[http.client.HTTPConnection]:
    headers = {**PART, "Upload-Offset": "0", "Content-Length": str(len(DATA))}
    return closing(connect(api, "PATCH", location, headers))


def _send_and_break(api: Api, method: str, path: str, headers: dict[str, str]) -> None:
    declared = {"Content-Length": str(len(DATA)), **headers}
    with closing(connect(api, method, path, declared)) as connection:
        connection.send(DATA[:2_500_000])


def _until(holds: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def _offset_after(client: httpx.Client, location: str, *, more_than: int) -> int:
    def offset() -> int:
        return int(client.head(location).headers["Upload-Offset"])

    _until(lambda: offset() > more_than)
    return offset()


def _uploads() -> int:
    with db.transaction() as session:
        return session.query(tables.Upload).count()


def _has_writer(location: str) -> bool:
    with db.transaction() as session:
        row = session.get_one(tables.Upload, location.rpartition("/")[2])
        return row.writer is not None
