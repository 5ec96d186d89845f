"""Sensitivities over real HTTP: made by a job that ends well, listed, read, used; on SQLite and on Postgres."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from app import db, jobs, tables
from app.accounts import Principal
from app.claims import Claim
from app.tables import Model
from modelpress.spec import order
from modelpress.spec.job import JobRequest
from modelpress.spec.sensitivity import Sensitivity
from tests import actor, making
from tests.app.conftest import Api

ANALYZE = {"steps": [{"kind": "analyze.sensitivity"}]}
MIXED = {"steps": [{"kind": "quantize.bits", "mixed": {"average_bits": 4}}]}
PRUNED = {"steps": [{"kind": "prune.magnitude", "sparsity": 0.5}, *MIXED["steps"]]}


@pytest.fixture
def served(
    configure: Callable[..., None], database_url: str, serve: Callable[[], str]
) -> Iterator[tuple[httpx.Client, Principal]]:
    configure(database_url=database_url, sweep_in_api=False)
    me, key = making.keyed()
    with Api(serve(), me.project_id, key).client() as client:
        yield client, me


def ordered(claim: Claim) -> order.CompressOrder:
    """What the engine of a job would be asked."""
    file = order.FileRef(path="input/m.onnx", sha256=making.digest(making.MODEL_BYTES))
    recipe = JobRequest.model_validate(claim.job.request).recipe
    return order.CompressOrder(model=file, recipe=recipe)


def measured(me: Principal, model: str, **changes: Any) -> tuple[str, Sensitivity]:
    """A job that has measured a model, and what it found."""
    job_id = making.job(me, model_id=model, recipe=ANALYZE, data={"train": making.dataset(me)})
    with db.transaction() as session:
        claim = jobs.claim(session, job_id, owner="w", sandbox="none")
        assert claim is not None
        wanted = ordered(claim)
        table = actor.table(wanted).model_copy(update=changes)
        report = actor.report(wanted, stages=2)
        assert jobs.finish_succeeded(session, claim, report, [], [table]) == "succeeded"
    return job_id, table


def listed(client: httpx.Client, model: str, **query: Any) -> dict[str, Any]:
    answer = client.get(f"/v1/models/{model}/sensitivities", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(client: httpx.Client, me: Principal, **fields: Any) -> tuple[str, str]:
    body = {"recipe": MIXED, "data": {"train": making.dataset(me)}, **fields}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 422, answer.text
    (problem,) = answer.json()["problems"]
    assert problem["pointer"] == "/sensitivity"
    return problem["code"], problem["reason"]


def test_what_a_job_measured_is_listed_and_read(served: tuple[httpx.Client, Principal]) -> None:
    client, me = served
    model = making.model(me)
    assert listed(client, model) == {"items": [], "next_cursor": None}
    first, table = measured(me, model)
    second, _ = measured(me, model)
    page = listed(client, model, limit=1)
    assert [item["job"] for item in page["items"]] == [second]
    (item,) = listed(client, model, cursor=page["next_cursor"])["items"]
    assert item["id"].startswith("sns_")
    assert {k: item[k] for k in ("job", "model", "methods", "layers", "samples")} == {
        "job": first,
        "model": model,
        "methods": ["bits"],
        "layers": 1,
        "samples": 10,
    }
    whole = client.get(f"/v1/sensitivities/{item['id']}").json()
    assert Sensitivity.model_validate(whole.pop("table")) == table
    assert whole == item


def test_nobody_else_sees_them(served: tuple[httpx.Client, Principal]) -> None:
    client, _ = served
    someone = making.principal("someone")
    theirs = making.model(someone)
    measured(someone, theirs)
    with db.transaction() as session:
        [row] = session.scalars(select(tables.Sensitivity)).all()
        found = row.id
    assert client.get(f"/v1/models/{theirs}/sensitivities").status_code == 404
    assert client.get(f"/v1/sensitivities/{found}").status_code == 404
    assert client.delete(f"/v1/sensitivities/{found}").status_code == 404


def test_job_that_uses_them_says_so(served: tuple[httpx.Client, Principal]) -> None:
    client, me = served
    model = making.model(me)
    measured(me, model)
    (item,) = listed(client, model)["items"]
    body = {"model": model, "recipe": MIXED, "data": {"train": making.dataset(me)}}
    made = client.post("/v1/jobs", json={**body, "sensitivity": item["id"]})
    assert made.status_code == 202, made.text
    assert made.json()["sensitivity"] == item["id"]
    assert client.post("/v1/jobs", json=body).json()["sensitivity"] is None


def test_job_that_cannot_use_them_is_refused(served: tuple[httpx.Client, Principal]) -> None:
    client, me = served
    model, other = making.model(me), making.model(me, content=b"another model")
    measured(me, model)
    (item,) = listed(client, model)["items"]
    code, reason = refusal(client, me, model=other, sensitivity=item["id"])
    assert code == "other_model"
    assert making.digest(b"another model")[:12] in reason
    assert refusal(client, me, model=model, sensitivity="sns_x")[0] == "not_found"
    used = {"model": model, "sensitivity": item["id"], "recipe": PRUNED}
    assert refusal(client, me, **used)[0] == "unused_sensitivity"


def test_removed_ones_are_gone_and_the_job_that_measured_stays(
    served: tuple[httpx.Client, Principal],
) -> None:
    client, me = served
    job_id, _ = measured(me, model := making.model(me))
    kept, _ = measured(me, model)
    gone = f"/v1/sensitivities/{listed(client, model)['items'][1]['id']}"
    assert client.delete(gone).status_code == 204
    assert client.get(gone).status_code == 404
    assert client.delete(gone).status_code == 404
    assert [item["job"] for item in listed(client, model)["items"]] == [kept]
    assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "succeeded"


def test_those_of_a_job_that_is_not_over_are_not_removed(
    served: tuple[httpx.Client, Principal],
) -> None:
    client, me = served
    measured(me, model := making.model(me))
    (item,) = listed(client, model)["items"]
    body = {"model": model, "recipe": MIXED, "data": {"train": making.dataset(me)}}
    job = client.post("/v1/jobs", json={**body, "sensitivity": item["id"]}).json()["id"]
    used = f"/v1/sensitivities/{item['id']}"
    refused = client.delete(used)
    assert (refused.status_code, refused.json()["code"]) == (409, "sensitivity_in_use")
    assert job in refused.json()["detail"]
    with db.transaction() as session:
        claim = jobs.claim(session, job, owner="w", sandbox="none")
        assert claim is not None
    assert client.delete(used).status_code == 409
    assert client.get(used).status_code == 200
    with db.transaction() as session:
        report = actor.report(ordered(claim), stages=2)
        assert jobs.finish_succeeded(session, claim, report, [], []) == "succeeded"
    assert client.delete(used).status_code == 204
    assert client.get(f"/v1/jobs/{job}").json()["sensitivity"] == item["id"]


def test_same_file_uploaded_again_may_use_them(served: tuple[httpx.Client, Principal]) -> None:
    """Also a model that was converted to that file."""
    client, me = served
    measured(me, model := making.model(me))
    (item,) = listed(client, model)["items"]
    converted = making.model(me, content=b"not onnx")
    with db.transaction() as session:
        session.get_one(Model, converted).onnx_sha256 = making.digest(making.MODEL_BYTES)
    for same in (making.model(me), converted):
        body = {"model": same, "recipe": MIXED, "data": {"train": making.dataset(me)}}
        answer = client.post("/v1/jobs:validate", json={**body, "sensitivity": item["id"]})
        assert answer.status_code == 200, answer.text


def test_analyses_without_end_are_refused(served: tuple[httpx.Client, Principal]) -> None:
    client, me = served
    body = {"model": making.model(me), "data": {"train": making.dataset(me)}}
    answer = client.post("/v1/jobs", json={**body, "recipe": {"steps": ANALYZE["steps"] * 9}})
    (problem,) = answer.json()["problems"]
    assert (problem["pointer"], problem["code"]) == ("/recipe/steps/8/kind", "too_many_analyses")
