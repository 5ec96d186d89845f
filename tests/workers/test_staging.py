"""The files of a job on a worker: each below the place that the order names, with the bytes that were stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app import catalogue, db, jobs, storage
from app.accounts import Principal
from app.claims import Claim
from app.tables import Model
from modelpress.spec import order
from tests import making
from workers import staging

UNTRAINED = b"the model before training"
MOVED = {"steps": [{"kind": "prune.magnitude", "sparsity": 0.5, "criterion": "movement"}]}


@pytest.fixture
def me(configure: Callable[..., None], sqlite_database_url: str, tmp_path: Path) -> Principal:
    configure(database_url=sqlite_database_url)
    someone = making.principal()
    making.store(someone, tmp_path / "scratch", making.MODEL_BYTES, UNTRAINED)
    return someone


@pytest.fixture
def claim(me: Principal) -> Claim:
    models = {"initial": making.model(me, content=UNTRAINED)}
    job_id = making.job(me, models=models, recipe=MOVED)
    with db.transaction() as session:
        taken = jobs.claim(session, job_id, owner="w", sandbox="none")
    assert taken is not None
    return taken


def test_other_models_are_staged_beside_the_model(claim: Claim) -> None:
    with staging.directory(claim) as path:
        staging.stage(claim, path, sandbox="none")
        asked = order.CompressOrder.model_validate_json((path / order.ORDER).read_bytes())
        assert (path / asked.model.path).read_bytes() == making.MODEL_BYTES
        assert (path / asked.models["initial"].path).read_bytes() == UNTRAINED
        assert asked.models["initial"].sha256 == making.digest(UNTRAINED)


def test_architecture_of_weights_goes_with_the_order_to_inspect_them(me: Principal) -> None:
    model_id = making.model(me)
    with db.transaction() as session:
        model = session.get_one(Model, model_id)
        model.state, model.architecture = "inspecting", "resnet18"
        jobs.enqueue(session, inspection := catalogue.inspection(model))
        session.flush()
        taken = jobs.claim(session, inspection.id, owner="w", sandbox="none")
    assert taken is not None
    with staging.directory(taken) as path:
        staging.stage(taken, path, sandbox="none")
        asked = order.InspectOrder.model_validate_json((path / order.ORDER).read_bytes())
        assert (asked.kind, asked.architecture) == ("model", "resnet18")


def test_other_model_that_is_not_what_was_stored_is_noticed(claim: Claim, tmp_path: Path) -> None:
    [blob] = tmp_path.rglob(making.digest(UNTRAINED))
    blob.write_bytes(UNTRAINED.upper())
    with staging.directory(claim) as path, pytest.raises(storage.Damaged):
        staging.stage(claim, path, sandbox="none")
