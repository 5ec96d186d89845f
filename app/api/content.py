"""The bytes of a stored file over HTTP: ranges, revalidation by hash, and nothing a browser would run."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePath
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Header, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from app import errors, settings, storage
from app.tables import Artifact, Dataset, Model

REDIRECT_VALID = timedelta(minutes=5)
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file. `ETag` is its SHA-256.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    206: {"description": "The part that `Range` asked for."},
    304: {"description": "The file is the one that `If-None-Match` names."},
    307: {"description": "Where the bucket itself serves the file, for five minutes."},
}
OPENAPI: Any = {"response_class": Response, "responses": _RESPONSES}
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


def _conditions(
    range_: Annotated[
        str | None, Header(alias="Range", description="Only these bytes: 'bytes=0-1023'.")
    ] = None,
    if_range: Annotated[
        str | None, Header(description="An ETag: `Range` counts only for this very file.")
    ] = None,
    if_none_match: Annotated[
        str | None, Header(description="An ETag: nothing is sent if the file is this one.")
    ] = None,
) -> None:
    """Describes the headers that `respond` reads."""


Conditions = Annotated[None, Depends(_conditions)]


@dataclass(frozen=True)
class File:
    """A stored file and what to call it."""

    key: str
    name: str
    sha256: str
    size_bytes: int

    @property
    def etag(self) -> str:
        """A strong validator: equal bytes, equal tag."""
        return f'"{self.sha256}"'


def file_of(row: Model | Dataset | Artifact) -> File:
    """The file behind a row."""
    return File(
        key=storage.blob_key(row.project_id, row.sha256),
        name=row.name if isinstance(row, Artifact) else row.filename,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
    )


def onnx_of(model: Model) -> File:
    """The ONNX file that jobs use of a model that was looked into."""
    file = file_of(model)
    if model.onnx_sha256 is None or model.onnx_size_bytes is None:
        return file
    return File(
        key=storage.blob_key(model.project_id, model.onnx_sha256),
        name=f"{PurePath(file.name).stem}.onnx",
        sha256=model.onnx_sha256,
        size_bytes=model.onnx_size_bytes,
    )


async def respond(request: Request, file: File) -> Response:
    """Answers GET and HEAD for a file.

    Raises:
        RangeNotSatisfiable: the range begins behind the end.
        Unavailable: the store does not answer.
    """
    headers = _headers(file)
    if _matches(request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=headers)
    wanted = _wanted(request, file)
    start, end = wanted or (0, file.size_bytes)
    headers["Content-Length"] = str(end - start)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size_bytes}"
    status = 200 if wanted is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    if settings.get().download_redirect and (url := _presigned(file)):
        return RedirectResponse(url, 307, headers={"Cache-Control": "no-store"})
    blocks = await _opened(file, start, end)
    return StreamingResponse(blocks, status, headers, media_type="application/octet-stream")


def _headers(file: File) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()
    return {
        "ETag": file.etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": disposition(file.name),
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Content-Type": "application/octet-stream",
        "Repr-Digest": f"sha-256=:{digest}:",
        "X-Content-Type-Options": "nosniff",
    }


def disposition(name: str) -> str:
    """Content-Disposition by RFC 6266: always a download; the name in ASCII for old clients, in UTF-8 for all others."""
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _matches(given: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in given.split(",")]
    return etag in tags or "*" in tags


def _wanted(request: Request, file: File) -> tuple[int, int] | None:
    """The range that was asked for, its end not included. Several ranges, and a range of another file, get the whole."""
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or match.groups() == ("", ""):
        return None
    if request.headers.get("if-range", file.etag) != file.etag:
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, file.size_bytes - int(last)), file.size_bytes
    else:
        start = int(first)
        end = min(int(last) + 1, file.size_bytes) if last else file.size_bytes
        if last and int(last) < start:
            return None  # not a valid range, so to be ignored
    if start >= end:
        raise errors.RangeNotSatisfiable(
            f"the file has {file.size_bytes} bytes, asked was {match[0]!r}",
            headers={"Content-Range": f"bytes */{file.size_bytes}"},
        )
    return start, end


def _presigned(file: File) -> str | None:
    return storage.get().presigned_url(file.key, valid=REDIRECT_VALID)


async def _opened(file: File, start: int, end: int) -> AsyncIterator[bytes]:
    """The blocks of a file, the first one read already, so that a store that fails is told in the status."""
    blocks = storage.get().stream(file.key, start, end)
    first = await anext(blocks, b"")

    async def all_blocks() -> AsyncIterator[bytes]:
        yield first
        async for block in blocks:
            yield block

    return all_blocks()
