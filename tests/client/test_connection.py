from __future__ import annotations

from pathlib import Path

import pytest

from modelpress import _connection, errors


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELPRESS_HOME", str(tmp_path))
    monkeypatch.delenv("MODELPRESS_URL", raising=False)
    monkeypatch.delenv("MODELPRESS_API_KEY", raising=False)
    return tmp_path


def leave_key(home: Path) -> None:
    (home / "key.json").write_text('{"url": "http://127.0.0.1:8765", "key": "mp_embedded"}')


def test_embedded_server_is_found_by_its_key_file(home: Path) -> None:
    leave_key(home)
    assert _connection.find() == ("http://127.0.0.1:8765", "mp_embedded")


def test_environment_wins_over_key_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_key(home)
    monkeypatch.setenv("MODELPRESS_URL", "https://press.example/")
    monkeypatch.setenv("MODELPRESS_API_KEY", "mp_env")
    assert _connection.find() == ("https://press.example", "mp_env")


def test_what_is_given_wins_over_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELPRESS_URL", "https://press.example")
    monkeypatch.setenv("MODELPRESS_API_KEY", "mp_env")
    assert _connection.find("http://other", "mp_given") == ("http://other", "mp_given")


def test_embedded_key_is_never_sent_to_another_server(home: Path) -> None:
    leave_key(home)
    assert _connection.find("https://elsewhere.example").api_key == ""


def test_embedded_key_is_used_when_its_own_server_is_named(home: Path) -> None:
    leave_key(home)
    assert _connection.find("http://127.0.0.1:8765/").api_key == "mp_embedded"


def test_without_any_server_the_message_says_how_to_get_one() -> None:
    with pytest.raises(errors.Unreachable, match=r"modelpress serve.*MODELPRESS_URL"):
        _connection.find()


def test_unreadable_key_file_is_named(home: Path) -> None:
    (home / "key.json").write_text("{")
    with pytest.raises(errors.Unreachable, match=r"key\.json can't be read"):
        _connection.find()
