"""Uploads over HTTP as tests make them."""

from __future__ import annotations

import base64
import hashlib
import http.client
from urllib.parse import urlsplit

import httpx

from app import storage
from tests.app.conftest import Api

TUS = {"Tus-Resumable": "1.0.0"}
PART = {**TUS, "Content-Type": "application/offset+octet-stream"}
DATA = bytes(range(256)) * 12_000  # 3 MB: several blocks


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def create(client: httpx.Client, size_bytes: int = len(DATA), **metadata: str) -> str:
    pairs = ",".join(f"{k} {b64(v.encode())}" for k, v in metadata.items())
    headers = {**TUS, "Upload-Length": str(size_bytes), "Upload-Metadata": pairs}
    response = client.post("/v1/uploads", headers=headers)
    assert response.status_code == 201
    return response.headers["Location"]


def patch(
    client: httpx.Client, location: str, data: bytes, offset: int, **headers: str
) -> httpx.Response:
    extra = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {**PART, "Upload-Offset": str(offset), **extra}
    return client.patch(location, content=data, headers=sent)


def stored(upload: str) -> list[str]:
    """The objects of an upload."""
    return [key for key, _ in storage.get().list(f"uploads/{upload.rpartition('/')[2]}/")]


def everything_stored() -> list[str]:
    return [key for key, _ in storage.get().list("uploads/")]


def connect(
    api: Api, method: str, path: str, headers: dict[str, str]
) -> http.client.HTTPConnection:
    """A request whose body is still to be sent."""
    connection = http.client.HTTPConnection(urlsplit(api.url).netloc, timeout=30)
    connection.putrequest(method, path)
    for name, value in {"Authorization": f"Bearer {api.key}", **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    return connection
