"""Uploads: resumable by tus 1.0, or a whole file in one plain request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from app import db, errors, intake, settings, tables, uploads
from app.accounts import Principal
from app.api import tus
from app.api.deps import Db, Me

router = APIRouter(prefix="/uploads", tags=["uploads"])

UploadId = Annotated[str, Path(max_length=64, description="Id of the upload.")]
Length = Annotated[str | None, Header(description="tus: bytes of the whole file.")]
Metadata = Annotated[
    str | None, Header(description="tus: `filename` and `sha256` (hex), their values in base64.")
]
Checksum = Annotated[
    str | None,
    Header(description="tus: 'sha256' or 'sha1', a space, the digest of this body in base64."),
]
Offset = Annotated[str | None, Header(description="tus: the byte at which this body begins.")]
Sha256 = Annotated[
    str | None,
    Query(max_length=64, description="SHA-256 of the file in hex; another file is refused."),
]

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_PART = {"requestBody": {"content": {tus.CONTENT_TYPE: _BINARY}}}
_FILE = {"requestBody": {"content": {"*/*": _BINARY}}}
_IN_PROGRESS = "`Upload-Offset` tells how much has come, `Upload-Expires` how long it is kept."


class UploadBody(BaseModel):
    """A file on its way in."""

    id: str = Field(description="Id, by which a model or dataset is made of it.")
    state: Literal["in_progress", "completed", "consumed"] = Field(
        description="'completed' when the last byte has come, 'consumed' when something was made of it."
    )
    filename: str = Field(description="What the client called the file.")
    size_bytes: int = Field(description="Bytes of the whole file.")
    offset_bytes: int = Field(description="How many of them have come.")
    sha256: str | None = Field(description="SHA-256 in hex; null until completed.")
    expires_at: datetime = Field(description="When it is removed, unless more comes.")

    @classmethod
    def of(cls, upload: tables.Upload) -> Self:
        """The answer for a row."""
        return cls.model_validate(upload, from_attributes=True)


@router.options("", status_code=204, responses={204: {"description": "See the `Tus-` headers."}})
def describe_uploads() -> Response:
    """Tells which version and extensions of tus are spoken, and the size limit."""
    headers = {
        "Tus-Resumable": tus.VERSION,
        "Tus-Version": tus.VERSION,
        "Tus-Extension": tus.EXTENSIONS,
        "Tus-Checksum-Algorithm": ",".join(tus.ALGORITHMS),
        "Tus-Max-Size": str(settings.get().max_upload_bytes),
    }
    return Response(status_code=204, headers=headers)


@router.post("", status_code=201, response_model=UploadBody, openapi_extra=_FILE)
async def create_upload(
    request: Request,
    me: Me,
    filename: Annotated[
        str, Query(max_length=1000, description="Without tus: what the file is called.")
    ] = "",
    sha256: Sha256 = None,
    upload_length: Length = None,
    upload_metadata: Metadata = None,
    upload_checksum: Checksum = None,
) -> Response:
    """Starts an upload by tus, with its first bytes as the body or with none. Without tus headers, the body is the
    whole file: `curl --data-binary @net.onnx '.../v1/uploads?filename=net.onnx'`.
    """
    tus.require_version(request.headers)
    if upload_length is None and "tus-resumable" not in request.headers:
        return _created(await _take_whole(request, me, filename, sha256))
    told = tus.metadata(request.headers)
    upload = await run_in_threadpool(
        _create,
        me,
        told.get("filename", filename),
        tus.required_number(request.headers, "Upload-Length"),
        told.get("sha256", sha256),
    )
    if _has_body(request):
        try:
            upload = await intake.append(me.project_id, upload.id, 0, _body(request))
        except errors.AppError:
            await run_in_threadpool(_remove, me, upload.id)
            raise
    return _created(upload)


@router.put("/{filename}", status_code=201, response_model=UploadBody, openapi_extra=_FILE)
async def put_file(
    request: Request,
    me: Me,
    filename: Annotated[str, Path(max_length=1000, description="What the file is called.")],
    sha256: Sha256 = None,
) -> Response:
    """Takes a whole file: `curl -T net.onnx .../v1/uploads/`."""
    return _created(await _take_whole(request, me, filename, sha256))


@router.head(
    "/{upload_id}",
    responses={200: {"description": f"`Upload-Length` and `Upload-Metadata`; {_IN_PROGRESS}"}},
)
def locate_upload(upload_id: UploadId, session: Db, me: Me) -> Response:
    """Tells where a tus client goes on."""
    upload = uploads.get(session, me.project_id, upload_id)
    return Response(headers={**tus.answer(upload), **tus.description(upload)})


@router.get("/{upload_id}")
def read_upload(upload_id: UploadId, session: Db, me: Me) -> UploadBody:
    """Describes an upload."""
    return UploadBody.of(uploads.get(session, me.project_id, upload_id))


@router.patch(
    "/{upload_id}",
    status_code=204,
    openapi_extra=_PART,
    responses={204: {"description": _IN_PROGRESS}},
)
async def append_to_upload(
    request: Request,
    me: Me,
    upload_id: UploadId,
    upload_offset: Offset = None,
    upload_checksum: Checksum = None,
) -> Response:
    """Appends bytes. What came before a connection broke is kept: ask HEAD for the offset and go on from there."""
    tus.require_version(request.headers)
    seen = request.headers.get("content-type", "").partition(";")[0].strip()
    if seen != tus.CONTENT_TYPE:
        raise errors.WrongMediaType(f"Content-Type is {seen[:80]!r}, not {tus.CONTENT_TYPE}")
    offset_bytes = tus.required_number(request.headers, "Upload-Offset")
    upload = await intake.append(me.project_id, upload_id, offset_bytes, _body(request))
    return Response(status_code=204, headers=tus.answer(upload))


@router.delete("/{upload_id}", status_code=204, responses={204: {"description": "Removed."}})
def remove_upload(upload_id: UploadId, session: Db, me: Me) -> Response:
    """Removes an upload and its bytes. Models and datasets made of it stay."""
    uploads.remove(session, me.project_id, upload_id)
    return Response(status_code=204, headers={"Tus-Resumable": tus.VERSION})


@router.post(
    "/{upload_id}",
    status_code=204,
    openapi_extra=_PART,
    responses={204: {"description": f"Done; {_IN_PROGRESS}"}},
)
async def override_method(
    request: Request,
    me: Me,
    upload_id: UploadId,
    upload_offset: Offset = None,
    upload_checksum: Checksum = None,
    x_http_method_override: Annotated[
        str, Header(description="tus: 'PATCH' or 'DELETE', for clients that can't send these.")
    ] = "",
) -> Response:
    """Appends to an upload or removes it, for clients whose network lets only GET and POST through."""
    if x_http_method_override == "PATCH":
        return await append_to_upload(request, me, upload_id)
    if x_http_method_override == "DELETE":
        await run_in_threadpool(_remove, me, upload_id)
        return Response(status_code=204, headers={"Tus-Resumable": tus.VERSION})
    raise errors.BadRequest(
        f"X-HTTP-Method-Override is {x_http_method_override[:20]!r}, neither PATCH nor DELETE",
        hint="new uploads are made with POST /v1/uploads",
    )


async def _take_whole(
    request: Request, me: Principal, filename: str, sha256: str | None
) -> tables.Upload:
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise errors.WrongMediaType(
            "the body is a form, not a file",
            hint="send the file as it is: curl --data-binary @FILE",
        )
    declared = tus.number(request.headers, "Content-Length")
    upload = await run_in_threadpool(_create, me, filename, declared, sha256)
    return await intake.append(me.project_id, upload.id, 0, _body(request, whole=True))


def _create(
    me: Principal, filename: str, size_bytes: int | None, sha256: str | None
) -> tables.Upload:
    with db.transaction() as session:
        return uploads.create(
            session,
            me.project_id,
            filename=tus.filename(filename),
            size_bytes=size_bytes,
            sha256=tus.sha256(sha256),
        )


def _remove(me: Principal, upload_id: str) -> None:
    with db.transaction() as session:
        uploads.remove(session, me.project_id, upload_id)


def _created(upload: tables.Upload) -> Response:
    return Response(
        UploadBody.of(upload).model_dump_json(),
        201,
        headers={"Location": f"/v1/uploads/{upload.id}", **tus.answer(upload)},
        media_type="application/json",
    )


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or _is_chunked(request)


def _is_chunked(request: Request) -> bool:
    return "chunked" in request.headers.get("transfer-encoding", "").lower()


def _body(request: Request, *, whole: bool = False) -> intake.Body:
    return intake.Body(
        chunks=_chunks(request),
        declared_bytes=tus.number(request.headers, "Content-Length"),
        checksum=tus.checksum(request.headers),
        whole=whole,
    )


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            if chunk:
                yield chunk
    except ClientDisconnect as e:
        raise intake.Cut from e
