"""What an administrator does at the machine."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from app import accounts, admin, db, settings, storage
from tests import making


@pytest.fixture
def home(configure: Callable[..., None], sqlite_database_url: str, tmp_path: Path) -> Path:
    home = tmp_path / "new" / "home"
    configure(home=home, database_url=sqlite_database_url, port=9999)
    return home


def _ensure() -> dict[str, str]:
    path = settings.get().key_file
    with db.transaction() as session:
        admin.ensure_embedded(session, path, "http://127.0.0.1:9999")
    found: dict[str, str] = json.loads(path.read_text())
    return found


def _holder(key: str) -> accounts.Principal:
    with db.transaction() as session:
        return accounts.authenticate(session, key)


@pytest.mark.usefixtures("home")
def test_key_of_the_embedded_service_is_left_for_its_owner_only() -> None:
    found = _ensure()

    path = settings.get().key_file
    assert found["url"] == "http://127.0.0.1:9999"
    assert _holder(found["key"]).admin
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["key.json"]


@pytest.mark.usefixtures("home")
def test_key_that_counts_is_kept() -> None:
    assert _ensure() == _ensure()


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 5}', '{"key": "mp_x"}'])
def test_unusable_key_file_is_replaced(text: str) -> None:
    path = settings.get().key_file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.chmod(0o644)

    assert _holder(_ensure()["key"]).admin
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.usefixtures("home")
def test_revoked_key_is_replaced() -> None:
    first = _ensure()["key"]
    holder = _holder(first)
    with db.transaction() as session:
        accounts.revoke_key(session, holder.project_id, holder.key_id)

    second = _ensure()["key"]

    assert second != first
    assert _holder(second).project_id == holder.project_id


@pytest.mark.usefixtures("home")
def test_command_makes_a_key_and_prints_only_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = []
    for arguments in (["--project", "vision"], ["--project", "vision", "--admin"]):
        admin.main(["create-key", *arguments])
        keys.append(capsys.readouterr().out.strip())

    plain, powerful = (_holder(key) for key in keys)
    assert plain.project_id == powerful.project_id
    assert (plain.admin, powerful.admin) == (False, True)


def test_command_leaves_the_key_file(home: Path) -> None:
    admin.main(["ensure-embedded"])

    assert json.loads((home / "key.json").read_text())["url"] == "http://127.0.0.1:9999"


@pytest.mark.usefixtures("home")
def test_orphans_are_listed_and_removed_only_on_request(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    me = making.principal()
    making.store(me, tmp_path / "scratch", b"left behind")
    key = storage.blob_key(me.project_id, making.digest(b"left behind"))

    admin.main(["orphans"])
    assert capsys.readouterr().out.splitlines() == [f"{key} 11", "1 files, 11 bytes"]
    assert storage.get().has(key)
    admin.main(["orphans", "--remove"])
    assert capsys.readouterr().out.splitlines()[-1] == "1 files, 11 bytes removed"
    assert not storage.get().has(key)
