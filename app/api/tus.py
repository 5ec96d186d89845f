"""The headers of tus 1.0: what they say, and what we answer. See https://tus.io/protocols/resumable-upload."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import format_datetime

from starlette.datastructures import Headers

from app import errors, intake
from app.tables import Upload

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,checksum,expiration,termination"
ALGORITHMS = {"sha256": 32, "sha1": 20}
CONTENT_TYPE = "application/offset+octet-stream"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_NUMBER = 19


def require_version(headers: Headers) -> None:
    """Lets requests without a version through, for the sake of plain clients.

    Raises:
        PreconditionFailed: the client speaks another version.
    """
    spoken = headers.get("tus-resumable", VERSION)
    if spoken != VERSION:
        raise errors.PreconditionFailed(
            f"Tus-Resumable is {spoken[:20]!r}, we speak {VERSION}",
            headers={"Tus-Version": VERSION},
        )


def number(headers: Headers, name: str) -> int | None:
    """A header that counts bytes; None where it is missing.

    Raises:
        BadRequest: it is no number.
    """
    text = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER):
        raise errors.BadRequest(f"{name} is {text[:40]!r}, not a number of bytes")
    return int(text)


def required_number(headers: Headers, name: str) -> int:
    """A header that counts bytes.

    Raises:
        BadRequest: it is missing or no number.
    """
    found = number(headers, name)
    if found is None:
        raise errors.BadRequest(f"the header {name} is missing")
    return found


def metadata(headers: Headers) -> dict[str, str]:
    """Upload-Metadata: pairs of a key and a base64 value, as text.

    Raises:
        BadRequest: it does not follow the protocol.
    """
    pairs = [pair.strip() for pair in headers.get("upload-metadata", "").split(",")]
    return dict(_pair(pair) for pair in pairs if pair)


def _pair(pair: str) -> tuple[str, str]:
    key, _, value = pair.partition(" ")
    try:
        return key, base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as e:
        raise errors.BadRequest(
            f"Upload-Metadata: the value of {key[:40]!r} is not base64 of UTF-8 text"
        ) from e


def filename(given: str) -> str:
    """A name as the user's file system had it, without its directories and without control characters."""
    last = given.replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in last if c.isprintable())[:255] or "upload.bin"


def sha256(given: str | None) -> str | None:
    """The hash of the whole file that a client announces.

    Raises:
        BadRequest: it is not 64 hex digits.
    """
    if given is not None and not _SHA256.fullmatch(given.lower()):
        raise errors.BadRequest(f"sha256 is {given[:80]!r}, not 64 hex digits")
    return given and given.lower()


def checksum(headers: Headers) -> intake.Checksum | None:
    """Upload-Checksum: what the body of this request hashes to.

    Raises:
        BadRequest: the algorithm is not one of ours, or the value no digest of it.
    """
    given = headers.get("upload-checksum")
    if given is None:
        return None
    algorithm, _, value = given.partition(" ")
    if algorithm not in ALGORITHMS:
        raise errors.BadRequest(
            f"Upload-Checksum: {algorithm[:20]!r} is none of {', '.join(ALGORITHMS)}",
            code="unsupported_checksum",
        )
    try:
        digest = base64.b64decode(value, validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != ALGORITHMS[algorithm]:
        raise errors.BadRequest(f"Upload-Checksum: {value[:80]!r} is no base64 of a {algorithm}")
    return intake.Checksum(algorithm, digest)


def answer(upload: Upload) -> dict[str, str]:
    """The headers that tell a client where an upload is."""
    headers = {
        "Tus-Resumable": VERSION,
        "Upload-Offset": str(upload.offset_bytes),
        "Cache-Control": "no-store",
    }
    if upload.state == "in_progress":
        headers["Upload-Expires"] = format_datetime(upload.expires_at.astimezone(UTC), usegmt=True)
    return headers


def description(upload: Upload) -> dict[str, str]:
    """The headers that tell a client what an upload is."""
    known: Mapping[str, str | None] = {
        "filename": upload.filename,
        "sha256": upload.expected_sha256,
    }
    pairs = [f"{k} {base64.b64encode(v.encode()).decode()}" for k, v in known.items() if v]
    return {"Upload-Length": str(upload.size_bytes), "Upload-Metadata": ",".join(pairs)}
