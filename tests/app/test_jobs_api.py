"""Jobs over real HTTP: submitted, judged, listed, cancelled; the API on SQLite and on Postgres."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from app import db, jobs
from app.accounts import Principal
from app.tables import Job
from modelpress.spec.inspection import TensorInfo
from modelpress.spec.job import JobRequest
from modelpress.spec.progress import Progress
from tests import actor, making
from tests.app.conftest import Api

DYNAMIC = {"steps": [{"kind": "quantize.int8", "mode": "dynamic"}]}
STATIC = {"steps": [{"kind": "quantize.int8"}]}
MOVED = {"steps": [{"kind": "prune.magnitude", "sparsity": 0.5, "criterion": "movement"}]}
TRAINED = {"steps": [{"kind": "prune.magnitude", "sparsity": 0.5, "fine_tune": {}}]}


@pytest.fixture
def served(
    configure: Callable[..., None], database_url: str, serve: Callable[[], str]
) -> Iterator[tuple[httpx.Client, Principal]]:
    configure(database_url=database_url, sweep_in_api=False, queued_per_project=5)
    me, key = making.keyed()
    with Api(serve(), me.project_id, key).client() as client:
        yield client, me


@pytest.fixture
def client(served: tuple[httpx.Client, Principal]) -> httpx.Client:
    return served[0]


@pytest.fixture
def me(served: tuple[httpx.Client, Principal]) -> Principal:
    return served[1]


def body(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "recipe": DYNAMIC, **fields}


def submit(client: httpx.Client, *, key: str = "", **fields: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post("/v1/jobs", json=body(**fields), headers=headers)


def problems(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    return {problem["pointer"]: problem["code"] for problem in answer.json()["problems"]}


def test_submitted_job_waits_and_says_all_it_was_asked(client: httpx.Client, me: Principal) -> None:
    model, data = making.model(me), making.dataset(me)
    answer = submit(client, model=model, name="first", seed=3, data={"train": data})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert (job["state"], job["kind"], job["name"], job["seed"]) == (
        "queued",
        "compress",
        "first",
        3,
    )
    assert job["model"] == model
    assert job["data"]["train"] == data
    assert job["recipe"]["steps"][0]["mode"] == "dynamic"
    assert job["limits"]["max_runtime_s"] == 6 * 3600
    assert client.get(answer.headers["Location"]).json() == job


def test_recipe_by_name_is_resolved(client: httpx.Client, me: Principal) -> None:
    answer = submit(client, model=making.model(me), recipe="int8-dynamic")
    assert answer.json()["recipe"]["steps"][0]["kind"] == "quantize.int8"


def test_same_key_and_request_answer_the_same_job(client: httpx.Client, me: Principal) -> None:
    model = making.model(me)
    first = submit(client, key="k", model=model)
    again = submit(client, key="k", model=model)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json()["id"] == first.json()["id"]
    other = submit(client, key="k", model=model, seed=1)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")


def test_same_key_at_the_same_moment_makes_one_job(client: httpx.Client, me: Principal) -> None:
    model = making.model(me)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: submit(client, key="k", model=model), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [202]
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_same_key_of_another_project_makes_another_job(client: httpx.Client, me: Principal) -> None:
    ours = submit(client, key="k", model=making.model(me)).json()
    stranger, key = making.keyed("others")
    theirs = client.post(
        "/v1/jobs",
        json=body(making.model(stranger)),
        headers={"Idempotency-Key": "k", "Authorization": f"Bearer {key}"},
    )
    assert theirs.status_code == 202
    assert theirs.json()["id"] != ours["id"]


@pytest.mark.parametrize(
    ("fields", "pointer", "code"),
    [
        ({"recipe": STATIC}, "/recipe/steps/0", "missing_data"),
        ({"recipe": TRAINED}, "/recipe/steps/0", "missing_data"),
        ({"model": "mdl_none"}, "/model", "not_found"),
        ({"data": {"train": "dat_none"}}, "/data/train", "not_found"),
        ({"data": {"eval": "dat_none"}}, "/data/eval", "not_found"),
        ({"recipe": MOVED}, "/recipe/steps/0", "missing_model"),
        ({"recipe": MOVED, "models": {"initial": "mdl_none"}}, "/models/initial", "not_found"),
        ({"recipe": "int9"}, "/recipe", "value_error"),
        ({"recipe": {"steps": []}}, "/recipe/steps", "too_short"),
        ({"recipe": {"steps": [{"kind": "fold.paper"}]}}, "/recipe/steps/0", "union_tag_invalid"),
        ({"more": 1}, "/more", "extra_forbidden"),
        ({"limits": {"max_runtime_s": 0}}, "/limits/max_runtime_s", "greater_than_equal"),
        (
            {"constraints": [{"metric": "accuracy", "goal": "max_drop", "value": 0.1}]},
            "/constraints/0/metric",
            "unmeasurable",
        ),
        (
            {"recipe": {"steps": [*STATIC["steps"], *DYNAMIC["steps"]]}},
            "/recipe/steps/1/kind",
            "wrong_order",
        ),
    ],
)
def test_request_that_can_not_work_is_refused_with_a_pointer(
    client: httpx.Client, me: Principal, fields: dict[str, Any], pointer: str, code: str
) -> None:
    asked = {"model": making.model(me), **fields}
    assert problems(submit(client, **asked))[pointer] == code
    assert problems(client.post("/v1/jobs:validate", json=body(**asked)))[pointer] == code
    assert client.get("/v1/jobs").json()["items"] == []


def test_step_that_is_wrong_is_one_problem(client: httpx.Client, me: Principal) -> None:
    """The list of steps is not said to be empty because none of them counts, and no library's words come first."""
    recipe = {"steps": [{"kind": "quantize.bits", "mixed": {}}]}
    answer = client.post("/v1/jobs", json={"model": making.model(me), "recipe": recipe})
    [found] = answer.json()["problems"]
    assert found["pointer"].startswith("/recipe/steps/0")
    assert found["reason"].startswith("exactly one of average_bits")


def test_recipe_of_ten_thousand_steps_is_refused(client: httpx.Client, me: Principal) -> None:
    recipe = {"steps": DYNAMIC["steps"] * 10_000}
    answer = submit(client, model=making.model(me), recipe=recipe)
    assert problems(answer) == {"/recipe/steps": "too_long"}


def test_dataset_without_labels_does_not_do_for_training(
    client: httpx.Client, me: Principal
) -> None:
    bare = actor.DATASET.model_copy(update={"labels": None, "histogram": (), "classes": ()})
    data = {"train": making.dataset(me, inspection=bare)}
    answer = submit(client, model=making.model(me), data=data, recipe=TRAINED)
    assert problems(answer) == {"/recipe/steps/0": "missing_labels"}


def test_dataset_that_does_not_fit_the_model_is_refused(
    client: httpx.Client, me: Principal
) -> None:
    wide = actor.DATASET.model_copy(
        update={"arrays": (TensorInfo(name="x", dtype="float32", shape=(10, 5)),)}
    )
    data = {"train": making.dataset(me, inspection=wide), "eval": making.dataset(me)}
    answer = submit(client, model=making.model(me), data=data)
    assert problems(answer) == {"/data/train": "wrong_shape"}
    assert "[10, 5]" in answer.json()["detail"]


def test_single_sample_can_not_be_split(client: httpx.Client, me: Principal) -> None:
    one = actor.DATASET.model_copy(update={"samples": 1})
    train = {"train": making.dataset(me, inspection=one)}
    model = making.model(me)
    assert problems(submit(client, model=model, data=train)) == {"/data/train": "too_few_samples"}
    both = train | {"eval": making.dataset(me)}
    assert submit(client, model=model, data=both).status_code == 202


@pytest.mark.parametrize(
    ("state", "code"), [("inspecting", "model_not_ready"), ("rejected", "model_rejected")]
)
def test_model_that_no_job_may_use_is_a_conflict(
    client: httpx.Client, me: Principal, state: str, code: str
) -> None:
    answer = submit(client, model=making.model(me, state=state))
    assert (answer.status_code, answer.json()["code"]) == (409, code)


def test_dataset_still_inspected_is_a_conflict(client: httpx.Client, me: Principal) -> None:
    data = {"train": making.dataset(me, state="inspecting")}
    answer = submit(client, model=making.model(me), data=data)
    assert (answer.status_code, answer.json()["code"]) == (409, "dataset_not_ready")
    assert answer.json()["pointer"] == "/data/train"


def test_model_of_another_project_is_not_found(client: httpx.Client, me: Principal) -> None:
    theirs = making.model(making.principal("others"))
    assert problems(submit(client, model=theirs)) == {"/model": "not_found"}


def test_other_model_of_a_step_is_part_of_the_job(client: httpx.Client, me: Principal) -> None:
    model, initial = making.model(me), making.model(me)
    answer = submit(client, model=model, models={"initial": initial}, recipe=MOVED)
    assert answer.status_code == 202
    assert answer.json()["models"] == {"initial": initial}
    with db.transaction() as session:
        assert session.get_one(Job, answer.json()["id"]).request["models"] == {"initial": initial}


def test_other_model_of_another_project_is_not_found(client: httpx.Client, me: Principal) -> None:
    theirs = making.model(making.principal("others"))
    answer = submit(client, model=making.model(me), models={"initial": theirs}, recipe=MOVED)
    assert problems(answer) == {"/models/initial": "not_found"}


def test_other_model_that_no_job_may_use_is_a_conflict(client: httpx.Client, me: Principal) -> None:
    models = {"initial": making.model(me, state="inspecting")}
    answer = submit(client, model=making.model(me), models=models, recipe=MOVED)
    assert (answer.status_code, answer.json()["code"]) == (409, "model_not_ready")
    assert answer.json()["pointer"] == "/models/initial"


def test_other_model_that_no_step_uses_is_refused(client: httpx.Client, me: Principal) -> None:
    models = {"initial": making.model(me)}
    answer = submit(client, model=making.model(me), models=models, recipe=DYNAMIC)
    assert problems(answer) == {"/models/initial": "unused_model"}


def test_project_has_a_limited_number_of_jobs_waiting(client: httpx.Client, me: Principal) -> None:
    model = making.model(me)
    statuses = [submit(client, model=model).status_code for _ in range(6)]
    assert statuses == [202] * 5 + [429]


def test_dry_run_tells_the_stages_and_makes_no_job(client: httpx.Client, me: Principal) -> None:
    answer = client.post("/v1/jobs:validate", json=body(making.model(me)))
    assert answer.status_code == 200
    plan = answer.json()
    assert [stage["name"] for stage in plan["stages"]] == ["baseline", "quantize.int8", "verify"]
    assert plan["recipe"]["steps"][0]["per_channel"] is True
    assert "accuracy" in plan["warnings"][0]
    assert client.get("/v1/jobs").json()["items"] == []


def test_jobs_come_in_pages_newest_first(client: httpx.Client, me: Principal) -> None:
    made = sorted((making.job(me) for _ in range(5)), reverse=True)
    first = client.get("/v1/jobs", params={"limit": 3}).json()
    second = client.get("/v1/jobs", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert [job["id"] for job in first["items"] + second["items"]] == made
    assert second["next_cursor"] is None
    assert client.get("/v1/jobs", params={"state": "failed"}).json()["items"] == []
    assert client.get("/v1/jobs", params={"state": "lazy"}).status_code == 422


def test_waiting_job_is_cancelled_and_an_ended_one_can_not_be(
    client: httpx.Client, me: Principal
) -> None:
    job_id = making.job(me)
    for _ in range(2):
        answer = client.post(f"/v1/jobs/{job_id}:cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    failed = making.job(me)
    with db.transaction() as session:
        taken = jobs.claim(session, failed, owner="w", sandbox="none")
        assert taken is not None
        jobs.finish_failed(session, taken, making.failure())
    answer = client.post(f"/v1/jobs/{failed}:cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "already_finished")


def test_running_job_shows_progress_partial_report_and_attempts(
    client: httpx.Client, me: Principal
) -> None:
    job_id = making.job(me)
    assert client.get(f"/v1/jobs/{job_id}/report").json()["code"] == "no_report"
    progress = Progress(stage=1, stages=3, name="quantize.int8", fraction=0.5)
    with db.transaction() as session:
        taken = jobs.claim(session, job_id, owner="w", sandbox="landlock-7+seccomp")
        assert taken is not None
        jobs.record_progress(session, taken, progress)
        jobs.record_report(session, taken, making.report(session, job_id), known=0)
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["attempt"], job["sandbox"]) == ("running", 1, "landlock-7+seccomp")
    assert job["progress"]["fraction"] == 0.5
    report = client.get(f"/v1/jobs/{job_id}/report").json()
    assert (len(report["stages"]), report["complete"]) == (1, False)
    [attempt] = client.get(f"/v1/jobs/{job_id}/attempts").json()["items"]
    assert (attempt["number"], attempt["worker"], attempt["ended"]) == (1, "w", None)


def test_failed_job_says_whose_fault_it_is(client: httpx.Client, me: Principal) -> None:
    job_id = making.job(me)
    with db.transaction() as session:
        taken = jobs.claim(session, job_id, owner="w", sandbox="none")
        assert taken is not None
        jobs.finish_failed(session, taken, making.failure("user_input", "bad_data"))
    failure = client.get(f"/v1/jobs/{job_id}").json()["failure"]
    assert (failure["class"], failure["blame"], failure["retryable"]) == (
        "user_input",
        "user",
        False,
    )


def test_inspection_is_a_job_too(client: httpx.Client, me: Principal) -> None:
    job_id, model_id = making.inspection(me)
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert (job["kind"], job["model"], job["recipe"]) == ("inspect_model", model_id, None)
    listed = client.get("/v1/jobs", params={"kind": "inspect_model"}).json()["items"]
    assert [item["id"] for item in listed] == [job_id]
    assert client.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("POST", ":cancel"),
        ("GET", "/report"),
        ("GET", "/attempts"),
        ("GET", "/events"),
    ],
)
def test_job_of_another_project_can_not_be_seen(
    client: httpx.Client, me: Principal, method: str, path: str
) -> None:
    _, key = making.keyed("others")
    url = f"/v1/jobs/{making.job(me)}{path}"
    answer = client.request(method, url, headers={"Authorization": f"Bearer {key}"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_stored_request_is_whole_and_resolved(client: httpx.Client, me: Principal) -> None:
    job_id = submit(client, model=making.model(me), recipe="int8-dynamic").json()["id"]
    with db.transaction() as session:
        stored = session.get_one(Job, job_id).request
    assert JobRequest.model_validate(stored).recipe.name == "int8-dynamic"
    assert stored["limits"]["max_pending_s"] == 7 * 86_400
