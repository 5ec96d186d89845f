"""Projects and keys: what opens, what does not, and who may make them."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest

from app import accounts, db, errors, tables
from tests.app.conftest import Api, new_project


def _key(project_id: str, **options: object) -> str:
    with db.transaction() as session:
        return accounts.create_key(session, project_id, "k", **options)[1]  # type: ignore[arg-type]


def _holder(key: str) -> accounts.Principal:
    with db.transaction() as session:
        return accounts.authenticate(session, key)


def test_key_opens_its_project(project_id: str) -> None:
    holder = _holder(_key(project_id))

    assert (holder.project_id, holder.admin) == (project_id, False)


def test_only_the_hash_of_a_key_is_kept(project_id: str) -> None:
    key = _key(project_id)
    with db.transaction() as session:
        row = accounts.keys(session, project_id)[0]
        kept = " ".join(str(getattr(row, column.key)) for column in tables.ApiKey.__table__.columns)

    assert key.rpartition("_")[2] not in kept
    assert len(key) == len("mp_") + 26 + len("_") + 43


def test_no_key_opens_but_the_right_one(project_id: str) -> None:
    key, other = _key(project_id), _key(project_id)
    id_, secret = key[3:29], key[30:]

    wrong = ["", "mp_", key[:-1], key + "x", key.upper(), f"mp_{'0' * 26}_{secret}"]
    wrong += [f"mp_{id_}_{other[30:]}", f"Bearer {key}", f"mp_{id_}_{secret[:-1]}é"]
    for text in wrong:
        with pytest.raises(errors.Unauthorized):
            _holder(text)


def test_expired_key_opens_nothing(project_id: str) -> None:
    key = _key(project_id, expires_at=tables.now() - timedelta(seconds=1))

    with pytest.raises(errors.Unauthorized, match="expired"):
        _holder(key)


def test_revoked_key_opens_nothing(project_id: str) -> None:
    key = _key(project_id)
    key_id = _holder(key).key_id
    for _ in range(2):
        with db.transaction() as session:
            accounts.revoke_key(session, project_id, key_id)

    with pytest.raises(errors.Unauthorized, match="revoked"):
        _holder(key)


def test_use_is_noted_once_a_minute(project_id: str) -> None:
    key = _key(project_id)
    first, second = _used_at(project_id, key), _used_at(project_id, key)
    with db.transaction() as session:
        accounts.keys(session, project_id)[0].last_used_at = tables.now() - timedelta(minutes=2)
    third = _used_at(project_id, key)

    assert first == second
    assert third >= first


def _used_at(project_id: str, key: str) -> object:
    _holder(key)
    with db.transaction() as session:
        return accounts.keys(session, project_id)[0].last_used_at


def test_projects_have_different_names(project_id: str) -> None:
    with db.transaction() as session:
        with pytest.raises(errors.Conflict, match="ours"):
            accounts.create_project(session, "ours")
        accounts.create_project(session, "after a refusal the transaction still works")

    with db.transaction() as session:
        assert len(accounts.projects(session)) == 2


def test_secret_is_shown_once(api: Api) -> None:
    with api.client() as client:
        made = client.post("/v1/api-keys", json={"name": "ci"})
        listed = client.get("/v1/api-keys")

    assert made.status_code == 201
    assert made.headers["Cache-Control"] == "no-store"
    assert made.json()["secret"] not in listed.text
    assert made.json()["id"] in listed.text
    with api.client(made.json()["secret"]) as second:
        assert second.get("/v1/project").json()["id"] == api.project_id


def test_revoked_key_is_refused_at_once(api: Api) -> None:
    with api.client() as client:
        made = client.post("/v1/api-keys", json={"name": "ci"}).json()
        with api.client(made["secret"]) as second:
            assert second.get("/v1/project").status_code == 200
            assert client.delete(f"/v1/api-keys/{made['id']}").status_code == 204
            refused = second.get("/v1/project")

    assert refused.status_code == 401
    assert "revoked" in refused.json()["detail"]


@pytest.mark.parametrize("body", [{"name": "k", "admin": True}, {"name": "k", "project": "prj_x"}])
def test_plain_key_makes_no_keys_above_itself(
    client: httpx.Client, body: dict[str, object]
) -> None:
    assert client.post("/v1/api-keys", json=body).status_code == 403


def test_plain_key_sees_no_projects(client: httpx.Client) -> None:
    assert client.get("/v1/projects").status_code == 403
    assert client.post("/v1/projects", json={"name": "x"}).status_code == 403


def test_administrator_makes_projects_and_their_keys(api: Api) -> None:
    _, key = new_project("administrators", admin=True)
    with api.client(key) as admin:
        project = admin.post("/v1/projects", json={"name": "vision"}).json()
        made = admin.post("/v1/api-keys", json={"name": "first", "project": project["id"]}).json()
        again = admin.post("/v1/projects", json={"name": "vision"})
        unknown = admin.post("/v1/api-keys", json={"name": "first", "project": "prj_none"})
        names = [item["name"] for item in admin.get("/v1/projects").json()["items"]]

    with api.client(made["secret"]) as member:
        assert member.get("/v1/project").json() == project
    assert (again.status_code, unknown.status_code) == (409, 404)
    assert names == ["vision", "administrators", "ours"]


def test_key_needs_a_time_zone_in_its_expiry(client: httpx.Client) -> None:
    refused = client.post("/v1/api-keys", json={"name": "k", "expires_at": "2030-01-01T00:00:00"})

    assert refused.status_code == 422
    assert refused.json()["problems"][0]["pointer"] == "/expires_at"
