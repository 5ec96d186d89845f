"""Log lines: one format for ours, the libraries' and uvicorn's, and no values of variables."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from app import logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    logs.configure(json=False)


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_our_lines_and_those_of_libraries_are_alike(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(json=True)
    with structlog.contextvars.bound_contextvars(request_id="req_1"):
        structlog.get_logger("app.x").info("ours", size_bytes=5)
        logging.getLogger("uvicorn.error").warning("theirs %s", 7)

    ours, theirs = _lines(capsys)
    assert (ours["event"], ours["size_bytes"], ours["request_id"]) == ("ours", 5, "req_1")
    assert (theirs["event"], theirs["level"], theirs["request_id"]) == (
        "theirs 7",
        "warning",
        "req_1",
    )
    assert ours.keys() - {"size_bytes"} == theirs.keys()


def test_second_configuration_doubles_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(json=True)
    logs.configure(json=True)
    structlog.get_logger("app.x").info("once")

    assert len(_lines(capsys)) == 1


@pytest.mark.parametrize("as_json", [True, False])
def test_tracebacks_keep_secrets(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    logs.configure(json=as_json)

    def fail(key: str) -> None:
        raise ValueError("failed")

    try:
        fail("mp_secret")
    except ValueError:
        structlog.get_logger("app.x").exception("went wrong")

    written = capsys.readouterr().err
    assert "failed" in written
    assert "mp_secret" not in written.replace('fail("mp_secret")', "")


@pytest.mark.parametrize("as_json", [True, False])
def test_newlines_of_users_do_not_make_lines(
    capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    logs.configure(json=as_json)
    structlog.get_logger("app.x").info("request", path="/a\nforged: line")

    assert len(capsys.readouterr().err.splitlines()) == 1
