"""The catalogue of steps and recipes."""

from __future__ import annotations

import httpx
from jsonschema import Draft202012Validator

from modelpress.spec.named import NAMED
from modelpress.spec.recipe import STEPS, parse


def test_every_step_is_listed_with_its_schema(client: httpx.Client) -> None:
    listed = client.get("/v1/steps").json()

    assert [step["kind"] for step in listed["items"]] == sorted(STEPS)
    for step in listed["items"]:
        Draft202012Validator.check_schema(step["schema"])
        assert step["doc"]
        assert "arXiv" in step["paper"]
        assert step["family"] == step["kind"].partition(".")[0]
        assert client.get(f"/v1/steps/{step['kind']}").json() == step


def test_defaults_are_those_of_the_spec(client: httpx.Client) -> None:
    step = client.get("/v1/steps/quantize.int8").json()

    assert step["defaults"]["mode"] == "static"
    assert step["needs"] == {"data": True, "labels": False}
    recipe = parse({"steps": [{"kind": "quantize.int8", **step["defaults"]}]})
    assert recipe == parse({"steps": [{"kind": "quantize.int8"}]})


def test_required_options_have_no_default(client: httpx.Client) -> None:
    step = client.get("/v1/steps/prune.lottery").json()

    assert "rounds" in step["schema"]["required"]
    assert "rounds" not in step["defaults"]


def test_unknown_step_names_the_known(client: httpx.Client) -> None:
    refused = client.get("/v1/steps/prune.nothing")

    assert refused.status_code == 404
    assert "prune.magnitude" in refused.json()["hint"]


def test_every_named_recipe_is_listed(client: httpx.Client) -> None:
    listed = client.get("/v1/recipes").json()["items"]

    assert {recipe["name"]: parse(recipe) for recipe in listed} == NAMED
