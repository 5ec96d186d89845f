"""What tus headers say."""

from __future__ import annotations

import base64

import pytest
from starlette.datastructures import Headers

from app import errors
from app.api import tus


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_metadata_is_read_as_the_protocol_writes_it() -> None:
    given = f"filename {_b64('modèle.onnx')}, sha256 {_b64('ab')},is_confidential"

    told = tus.metadata(Headers({"Upload-Metadata": given}))

    assert told == {"filename": "modèle.onnx", "sha256": "ab", "is_confidential": ""}
    assert tus.metadata(Headers({})) == {}


@pytest.mark.parametrize("value", ["***", "YQ", base64.b64encode(b"\xff").decode()])
def test_metadata_that_is_not_text_in_base64_is_refused(value: str) -> None:
    with pytest.raises(errors.BadRequest, match="filename"):
        tus.metadata(Headers({"Upload-Metadata": f"filename {value}"}))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("net.onnx", "net.onnx"),
        ("../../etc/passwd", "passwd"),
        ("C:\\models\\net.onnx", "net.onnx"),
        ("a\r\nb\0c", "abc"),
        ("", "upload.bin"),
        ("dir/", "upload.bin"),
        ("x" * 300, "x" * 255),
        ("モデル.onnx", "モデル.onnx"),
    ],
)
def test_file_names_lose_what_could_lead_elsewhere(given: str, kept: str) -> None:
    assert tus.filename(given) == kept


@pytest.mark.parametrize("given", ["", "x" * 64, "ab", "0" * 65])
def test_hash_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(errors.BadRequest, match="64 hex digits"):
        tus.sha256(given)


def test_hash_is_read_in_any_case() -> None:
    assert tus.sha256("AB" * 32) == "ab" * 32
    assert tus.sha256(None) is None


@pytest.mark.parametrize("given", ["", " 5", "5 ", "+5", "-5", "1e3", "²", "9" * 20])
def test_number_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(errors.BadRequest, match="Upload-Offset"):
        tus.required_number(Headers({"Upload-Offset": given}), "Upload-Offset")


def test_missing_number_is_named() -> None:
    with pytest.raises(errors.BadRequest, match="Upload-Length is missing"):
        tus.required_number(Headers({}), "Upload-Length")
