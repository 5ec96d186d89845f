"""Models and datasets: made of uploads, listed in pages, opened or rejected by their inspection."""

from __future__ import annotations

import httpx
import pytest
from sqlalchemy import select

from app import accounts, catalogue, db, errors, ids, jobs, tables
from app.claims import StoredFile
from app.tables import Dataset, Job, Model
from modelpress.spec.inspection import ModelInspection, TensorInfo
from modelpress.spec.state import Failure

INSPECTION = ModelInspection(
    format="onnx",
    opset=20,
    inputs=(TensorInfo(name="x", dtype="float32", shape=("n", 4)),),
    outputs=(TensorInfo(name="y", dtype="float32", shape=("n", 2)),),
    parameters=8,
    macs=8,
    operators={"MatMul": 1},
)
FAILURE = Failure(**{"class": "unsupported"}, code="unsupported", message="Loop is not supported")


def _model(project_id: str, name: str = "net") -> Model:
    return Model(
        id=ids.new("mdl"),
        project_id=project_id,
        name=name,
        filename="net.onnx",
        sha256="0" * 64,
        size_bytes=1,
    )


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_new_entry_is_looked_into(any_client: httpx.Client, kind: str) -> None:
    upload = any_client.post("/v1/uploads?filename=f.bin", content=b"bytes").json()["id"]

    response = any_client.post(f"/v1/{kind}", json={"upload": upload})

    entry = response.json()
    assert response.status_code == 201
    assert (entry["state"], entry["name"]) == ("inspecting", "f.bin")
    jobs = any_client.get(f"/v1/jobs?kind=inspect_{kind[:-1]}").json()["items"]
    assert [(job["queue"], job["state"]) for job in jobs] == [("ingest", "queued")]


def test_same_weights_of_two_architectures_are_two_models(any_client: httpx.Client) -> None:
    made = []
    for name in ("resnet18", "resnet18.a1_in1k", None):
        upload = any_client.post("/v1/uploads", content=b"bytes").json()["id"]
        body = {"upload": upload, "architecture": name} if name else {"upload": upload}
        made.append(any_client.post("/v1/models", json=body).json())

    shown = [any_client.get(f"/v1/models/{model['id']}").json() for model in made]

    assert [model["architecture"] for model in shown] == ["resnet18", "resnet18.a1_in1k", None]
    assert len({model["id"] for model in shown}) == 3
    assert len({model["sha256"] for model in shown}) == 1


@pytest.mark.parametrize("name", ["", "hf-hub:timm/resnet18", "../resnet18", "a b", "r" * 129])
def test_what_can_be_no_architecture_is_refused(client: httpx.Client, name: str) -> None:
    upload = client.post("/v1/uploads", content=b"bytes").json()["id"]

    refused = client.post("/v1/models", json={"upload": upload, "architecture": name})

    assert refused.status_code == 422
    assert refused.json()["problems"][0]["pointer"] == "/architecture"
    assert client.get(f"/v1/uploads/{upload}").json()["state"] == "completed"


def test_entry_and_its_inspection_are_one_transaction(
    any_client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise errors.TooMany("no more")

    upload = any_client.post("/v1/uploads", content=b"bytes").json()["id"]
    with monkeypatch.context() as patched:
        patched.setattr("app.jobs.enqueue", refuse)
        refused = any_client.post("/v1/models", json={"upload": upload})

    assert refused.status_code == 429
    assert any_client.get("/v1/models").json()["items"] == []
    assert any_client.get(f"/v1/uploads/{upload}").json()["state"] == "completed"
    assert any_client.post("/v1/models", json={"upload": upload}).status_code == 201


def test_inspection_opens_a_model(project_id: str) -> None:
    with db.transaction() as session:
        model = _model(project_id)
        session.add(model)
        session.flush()
        catalogue.record_inspection(session, catalogue.inspection(model), INSPECTION)
    with db.transaction() as session:
        found = catalogue.get(session, Model, project_id, model.id)

    assert found.state == "ready"
    assert ModelInspection.model_validate(found.inspection) == INSPECTION


def test_inspection_of_a_converted_model_names_the_file_that_jobs_use(project_id: str) -> None:
    converted = StoredFile("model.onnx", "onnx", "1" * 64, 7)
    with db.transaction() as session:
        model = _model(project_id)
        session.add(model)
        session.flush()
        job = catalogue.inspection(model)
        found = INSPECTION.model_copy(update={"format": "pt2"})
        catalogue.record_inspection(session, job, found, converted=converted)
        model_id = model.id
    with db.transaction() as session:
        kept = session.get_one(Model, model_id)
        assert (kept.sha256, kept.onnx_sha256, kept.onnx_size_bytes) == ("0" * 64, "1" * 64, 7)


def test_failed_inspection_rejects_a_model_with_the_reason(project_id: str) -> None:
    with db.transaction() as session:
        model = _model(project_id)
        session.add(model)
        session.flush()
        catalogue.record_inspection(session, catalogue.inspection(model), FAILURE)
    with db.transaction() as session:
        found = catalogue.get(session, Model, project_id, model.id)

    assert found.state == "rejected"
    assert Failure.model_validate(found.failure) == FAILURE


def test_rejected_model_shows_its_failure(client: httpx.Client) -> None:
    upload = client.post("/v1/uploads", content=b"bytes").json()["id"]
    model_id = client.post("/v1/models", json={"upload": upload}).json()["id"]
    with db.transaction() as session:
        job = session.scalars(select(Job).where(Job.model_id == model_id)).one()
        catalogue.record_inspection(session, job, FAILURE)

    shown = client.get(f"/v1/models/{model_id}").json()

    assert shown["failure"]["class"] == "unsupported"
    assert client.get("/v1/models?state=rejected").json()["items"] == [shown]
    assert client.get("/v1/models?state=ready").json()["items"] == []


def _uploaded(client: httpx.Client) -> str:
    upload = client.post("/v1/uploads", content=b"bytes").json()["id"]
    return str(client.post("/v1/models", json={"upload": upload}).json()["id"])


def _looked_into(model_id: str, found: ModelInspection | Failure) -> None:
    """Ends the inspection of a model, the latest one."""
    with db.transaction() as session:
        mine = select(Job.id).where(Job.model_id == model_id).order_by(Job.id.desc()).limit(1)
        claim = jobs.claim(session, session.scalars(mine).one(), owner="w", sandbox="none")
    assert claim is not None
    with db.transaction() as session:
        if isinstance(found, Failure):
            assert jobs.finish_failed(session, claim, found) is not None
        else:
            assert jobs.finish_inspected(session, claim, found) is not None


def test_model_is_looked_into_again_by_one_worker_at_a_time(any_client: httpx.Client) -> None:
    model_id = _uploaded(any_client)
    first = any_client.post(f"/v1/models/{model_id}")
    _looked_into(model_id, INSPECTION)

    again, same = (
        any_client.post(f"/v1/models/{model_id}"),
        any_client.post(f"/v1/models/{model_id}"),
    )

    assert {r.status_code for r in (first, again, same)} == {202}
    assert again.headers["Location"] == same.headers["Location"] != first.headers["Location"]
    assert any_client.get(first.headers["Location"]).json()["state"] == "succeeded"
    looks = any_client.get("/v1/jobs?kind=inspect_model").json()["items"]
    assert [look["state"] for look in looks] == ["queued", "succeeded"]


def test_second_look_replaces_what_the_first_found(client: httpx.Client) -> None:
    model_id = _uploaded(client)
    _looked_into(model_id, INSPECTION)
    asked = client.post(f"/v1/models/{model_id}").json()
    _looked_into(model_id, INSPECTION.model_copy(update={"notes": ("newer",)}))
    shown = client.get(f"/v1/models/{model_id}").json()

    assert (asked["state"], asked["inspection"]["notes"]) == ("inspecting", [])
    assert (shown["state"], shown["inspection"]["notes"]) == ("ready", ["newer"])


def test_model_that_is_looked_into_again_may_be_used_meanwhile(client: httpx.Client) -> None:
    model_id = _uploaded(client)
    job = {"model": model_id, "recipe": "int8-dynamic"}
    assert client.post("/v1/jobs", json=job).json()["code"] == "model_not_ready"
    _looked_into(model_id, INSPECTION)
    client.post(f"/v1/models/{model_id}")

    assert client.post("/v1/jobs", json=job).status_code == 202


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_second_look_without_a_result_leaves_the_model_as_it_was(
    client: httpx.Client, how: str
) -> None:
    model_id = _uploaded(client)
    _looked_into(model_id, INSPECTION)
    before = client.get(f"/v1/models/{model_id}").json()
    look = client.post(f"/v1/models/{model_id}").headers["Location"]
    if how == "failed":
        _looked_into(model_id, FAILURE)
    else:
        assert client.post(f"{look}:cancel").status_code == 202

    assert client.get(look).json()["state"] == how
    assert client.get(f"/v1/models/{model_id}").json() == before


def test_rejected_model_gets_another_chance(client: httpx.Client) -> None:
    model_id = _uploaded(client)
    _looked_into(model_id, FAILURE)
    asked = client.post(f"/v1/models/{model_id}").json()
    assert (asked["state"], asked["failure"]) == ("inspecting", None)
    _looked_into(model_id, INSPECTION)

    assert client.get(f"/v1/models/{model_id}").json()["state"] == "ready"


def test_foreign_model_is_not_looked_into(client: httpx.Client) -> None:
    with db.transaction() as session:
        other = accounts.create_project(session, "theirs")
        model = _model(other.id)
        session.add(model)

    assert client.post(f"/v1/models/{model.id}").status_code == 404


def test_pages_hold_everything_once_and_the_newest_first(project_id: str) -> None:
    with db.transaction() as session:
        models = [_model(project_id, str(number)) for number in range(5)]
        for model in models:
            session.add(model)
    with db.transaction() as session:
        seen, cursor = [], ""
        while rows := catalogue.page(session, Model, project_id, cursor=cursor, limit=2):
            seen += [row.id for row in rows]
            cursor = rows[-1].id

    assert seen == sorted((model.id for model in models), reverse=True)


def test_pages_are_linked_by_cursors(client: httpx.Client) -> None:
    made = []
    for number in range(3):
        upload = client.post("/v1/uploads", content=b"%d" % number).json()["id"]
        made.append(client.post("/v1/datasets", json={"upload": upload}).json()["id"])

    first = client.get("/v1/datasets?limit=2").json()
    second = client.get("/v1/datasets", params={"limit": 2, "cursor": first["next_cursor"]}).json()

    assert [item["id"] for item in first["items"] + second["items"]] == made[::-1]
    assert second["next_cursor"] is None


def test_entry_of_another_project_is_not_found(project_id: str) -> None:
    with db.transaction() as session:
        other = accounts.create_project(session, "theirs")
        model = _model(other.id)
        session.add(model)
        session.flush()

        with pytest.raises(errors.NotFound):
            catalogue.get(session, Model, project_id, model.id)
        with pytest.raises(errors.NotFound):
            catalogue.get(session, Dataset, other.id, model.id)
        assert catalogue.page(session, Model, project_id) == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({}, "/upload"), ({"upload": "u", "extra": 1}, "/extra"), ({"upload": 5}, "/upload")],
)
def test_malformed_request_is_refused_with_a_pointer(
    client: httpx.Client, body: dict[str, object], pointer: str
) -> None:
    refused = client.post("/v1/models", json=body)

    assert refused.status_code == 422
    assert [problem["pointer"] for problem in refused.json()["problems"]] == [pointer]


def test_equal_files_of_a_project_are_stored_once(client: httpx.Client) -> None:
    for _ in range(2):
        upload = client.post("/v1/uploads", content=b"same").json()["id"]
        assert client.post("/v1/models", json={"upload": upload}).status_code == 201

    with db.transaction() as session:
        assert len(session.scalars(select(tables.Model)).all()) == 2
    assert all(
        client.get(f"/v1/models/{item['id']}/content").content == b"same"
        for item in client.get("/v1/models").json()["items"]
    )
