"""The command line against the real service, and without one."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner, Result

from modelpress import cli, errors
from modelpress._ended import Exit
from modelpress.client import Client
from modelpress.spec.order import EXIT_FAILED
from tests import examples
from tests.conftest import Service
from tests.engine import architectures, exported, nets

pytestmark = pytest.mark.e2e

Run = Callable[..., Result]

MOVED = {"steps": [{"kind": "prune.magnitude", "sparsity": 0.5, "criterion": "movement"}]}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with model.onnx and data.npz, and no server in the environment."""
    examples.digits(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELPRESS_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture
def alone() -> Run:
    """Runs the command line where no server is known."""
    return lambda *argv: CliRunner().invoke(cli.app, [str(part) for part in argv])


@pytest.fixture
def run(alone: Run, service: Service, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line on the machine of the service."""
    monkeypatch.setenv("MODELPRESS_HOME", str(service.home))
    return alone


@pytest.fixture(scope="module")
def uploaded(service: Service, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The ids of a model and of its data."""
    model, data = examples.digits(tmp_path_factory.mktemp("uploaded"))
    with Client(service.url, service.key) as client:
        return client.upload_model(model).id, client.upload_dataset(data).id


@pytest.fixture(scope="module")
def done(service: Service, uploaded: tuple[str, str]) -> str:
    """The id of a job that succeeded."""
    with Client(service.url, service.key) as client:
        return client.wait(client.submit(uploaded[0], "int8-dynamic", name="done")).id


def test_compress_prints_the_report_and_leaves_a_model_that_runs(run: Run, directory: Path) -> None:
    ended = run("compress", "model.onnx", "--recipe", "int8-dynamic", "--data", "data.npz")
    assert ended.exit_code == Exit.OK, ended.output
    assert "quantize.int8" in ended.stdout
    assert "outcome" in ended.stdout
    assert "quantize.int8" not in ended.stderr.replace("2/3 quantize.int8", "")
    made = directory / "model-compressed"
    assert onnxruntime.InferenceSession(str(made / "model.onnx")).get_inputs()[0].name == "image"
    assert json.loads((made / "report.json").read_text())["complete"]


def test_pytorch_goes_in_and_comes_out(run: Run, directory: Path, service: Service) -> None:
    net = exported.network("convolutional")
    sent = exported.save(net, exported.sample("convolutional", 2), directory / "net.pt2")
    argv = ("compress", "net.pt2", "--recipe", "int8", "--data", "data.npz", "--format", "pt2")
    ended = run(*argv)
    assert ended.exit_code == Exit.OK, ended.output
    assert "model.pt2" in ended.stdout
    inputs = torch.from_numpy(np.load("data.npz")["image"][:9])
    [found] = exported.run_torch(directory / "net-compressed/model.pt2", inputs)
    [wanted] = exported.run_torch(sent, inputs)
    assert (found - wanted).abs().max() < 0.1 * wanted.abs().max()
    with Client(service.url, service.key) as client:
        model = client.model(client.job(json.loads(run("jobs", "--json").stdout)[0]["id"]).model)
    assert model.inspection.format == "pt2"
    assert model.onnx_sha256 not in (None, model.sha256)
    for more, name in (((), "net.pt2"), (("--onnx",), "net.onnx")):
        assert run("fetch", model.id, *more).stdout.split() == [f"{model.id}/{name}"]
    assert (directory / model.id / "net.pt2").read_bytes() == sent.read_bytes()
    assert onnx.load(directory / model.id / "net.onnx").graph.output[0].name


def test_what_one_job_measured_is_used_by_the_next(
    run: Run, directory: Path, service: Service, uploaded: tuple[str, str]
) -> None:
    steps = [{"kind": "analyze.sensitivity", "methods": ["bits"], "samples": 64}]
    (directory / "analyze.json").write_text(json.dumps({"steps": steps}))
    mixed = [{"kind": "quantize.bits", "mixed": {"average_bits": 6}}]
    (directory / "mixed.json").write_text(json.dumps({"steps": mixed}))
    model, data = uploaded
    argv = ("compress", model, "--data", data, "--recipe")
    ended = json.loads(run(*argv, "analyze.json", "--out", "analyzed", "--json").stdout)
    [known] = json.loads(run("sensitivity", ended["job"], "--json").stdout)
    assert known["id"] in run("sensitivity", model).stdout
    shown = run("sensitivity", known["id"], "--svg", "s.svg")
    assert shown.exit_code == Exit.OK, shown.output
    assert "accuracy on training samples, bits by bits of a weight" in shown.stdout
    assert run("sensitivity", "analyzed/sensitivity.json").stdout == shown.stdout
    assert (directory / "s.svg").read_text().startswith("<svg")
    used = run(*argv, "mixed.json", "--sensitivity", known["id"], "--json")
    assert used.exit_code == Exit.OK, used.output
    with Client(service.url, service.key) as client:
        assert client.job(json.loads(used.stdout)["job"]).sensitivity == known["id"]
        with pytest.raises(errors.Invalid, match="no sensitivities"):
            client.validate(model, {"steps": mixed}, data=data, sensitivity="sns_x")
    assert run("sensitivity", known["id"], "--remove").exit_code == Exit.OK
    assert run("sensitivity", known["id"]).exit_code == Exit.REFUSED
    argv = ("compress", "model.onnx", "--data", "data.npz", "--local", "--recipe", "mixed.json")
    here = run(*argv, "--sensitivity", "analyzed/sensitivity.json", "--json")
    for told in (used, here):
        assert "not measured but known: of weights rounded to nearest" in told.stdout, told.output


def test_onnx_of_a_job_is_refused(run: Run, done: str) -> None:
    assert run("fetch", done, "--onnx").exit_code == Exit.USAGE


def test_weights_go_in_with_the_name_of_their_architecture(
    run: Run, directory: Path, service: Service
) -> None:
    network = architectures.network("test_byobnet", num_classes=5)
    architectures.save(network, directory / "net.safetensors")
    argv = ("compress", "net.safetensors", "--architecture", "test_byobnet")
    ended = run(*argv, "--recipe", "int8-dynamic", "--json")
    assert ended.exit_code == Exit.OK, ended.output
    made = directory / "net-compressed/model.onnx"
    assert architectures.differ(made, network, architectures.images(3)) < 0.1
    with Client(service.url, service.key) as client:
        model = client.model(client.job(json.loads(ended.stdout)["job"]).model)
    assert (model.architecture, model.inspection.format) == ("test_byobnet", "safetensors")
    assert model.onnx_sha256 not in (None, model.sha256)
    assert "test_byobnet" in run("inspect", model.id).stdout
    assert run("inspect", model.id, "--architecture", "test_vit").exit_code == Exit.USAGE


@pytest.mark.parametrize(
    ("sent", "options", "said"),
    [
        ("net.safetensors", (), "architecture"),
        ("net.safetensors", ("--architecture", "tset_vit"), "test_vit"),
        ("model.onnx", ("--architecture", "test_vit"), "leave it out"),
    ],
)
def test_architecture_that_does_not_fit_is_refused(
    run: Run, directory: Path, sent: str, options: tuple[str, ...], said: str
) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, directory / "net.safetensors")
    ended = run("compress", sent, "--recipe", "int8-dynamic", *options)
    assert ended.exit_code == Exit.REFUSED
    assert said in ended.stderr


def test_pickle_is_refused_by_name(run: Run, directory: Path) -> None:
    torch.save(exported.network("tied").state_dict(), directory / "state.pt")
    ended = run("compress", "state.pt", "--recipe", "int8-dynamic")
    assert ended.exit_code == Exit.REFUSED
    assert "torch.save" in ended.stderr
    assert "torch.export" in ended.stderr


def test_local_takes_pytorch_too(alone: Run, directory: Path) -> None:
    net = exported.network("convolutional")
    exported.save(net, exported.sample("convolutional", 2), directory / "net.pt2")
    ended = alone("compress", "net.pt2", "--recipe", "int8-dynamic", "--local", "--json")
    assert ended.exit_code == Exit.OK, ended.output
    assert json.loads(ended.stdout)["report"]["model"] == "net.pt2"


def test_local_takes_weights_with_an_architecture_alone(alone: Run, directory: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, directory / "net.safetensors")
    argv = ("compress", "net.safetensors", "--recipe", "int8-dynamic", "--local")
    unnamed, unfitting = alone(*argv), alone(*argv, "--architecture", "test_byobnet")
    assert (unnamed.exit_code, unfitting.exit_code) == (Exit.FAILED, Exit.FAILED)
    assert "--architecture" in unnamed.stderr
    assert "not those of 'test_byobnet'" in unfitting.stderr


def test_json_is_one_value_on_standard_output(
    run: Run, directory: Path, uploaded: tuple[str, str]
) -> None:
    argv = ("compress", uploaded[0], "--recipe", "int8-dynamic", "--out", "small", "--json")
    ended = run(*argv, "--constraint", "size_bytes:max_ratio:0.001")
    assert ended.exit_code == Exit.UNMET
    value = json.loads(ended.stdout)
    assert value["state"] == "succeeded"
    assert value["report"]["outcome"] == "best_effort"
    assert [Path(name).name for name in value["files"]] == ["model.onnx", "report.json"]
    assert all((directory / name).is_file() for name in value["files"])


def test_submitting_prints_the_id_alone(run: Run, uploaded: tuple[str, str]) -> None:
    model, data = uploaded
    submitted = run("submit", model, "--data", data, "--recipe", "int8", "--name", "later")
    job = submitted.stdout.strip()
    assert submitted.exit_code == Exit.OK
    assert f"modelpress watch {job}" in submitted.stderr
    cancelled = json.loads(run("cancel", job, "--json").stdout)
    assert cancelled["id"] == job
    assert cancelled["model"] == model
    assert cancelled["data"]["train"] == data


def test_watching_a_job_that_has_ended_prints_its_report(run: Run, done: str) -> None:
    watched = run("watch", done)
    assert watched.exit_code == Exit.OK, watched.output
    assert "baseline" in watched.stdout


def test_fetched_files_are_named(run: Run, directory: Path, done: str) -> None:
    fetched = run("fetch", done)
    assert fetched.stdout.split() == [f"{done}/model.onnx", f"{done}/report.json"]
    assert (directory / done / "model.onnx").is_file()


def test_model_is_told_what_could_be_done_to_it(run: Run, uploaded: tuple[str, str]) -> None:
    model, _ = uploaded
    told = run("inspect", model)
    assert told.exit_code == Exit.OK, told.stderr
    lines = [line.split() for line in told.stdout.splitlines()]
    steps = {line[0]: line[1] for line in lines if len(line) > 1 and "." in line[0]}
    assert steps["prune.channels"] == steps["quantize.int8"] == "yes"
    assert steps["dynamic.*"] == "no"
    found = json.loads(run("inspect", model, "--json").stdout)
    assert found["inspection"]["capabilities"]["prune"]["ok"] is True


def test_model_is_looked_into_again(run: Run, service: Service, uploaded: tuple[str, str]) -> None:
    model, _ = uploaded
    told = run("inspect", model, "--again", "--json")
    assert told.exit_code == Exit.OK, told.stderr
    assert json.loads(told.stdout)["state"] == "ready"
    with Client(service.url, service.key) as client:
        looks = [job for job in client.jobs(kind="inspect_model") if job.model == model]
    assert [look.state for look in looks] == ["succeeded", "succeeded"]


def test_jobs_are_listed(run: Run, done: str) -> None:
    listed = run("jobs", "--state", "succeeded", "--limit", "50")
    assert done in listed.stdout.replace("\n", "")
    found = json.loads(run("jobs", "--json", "--limit", "1").stdout)
    assert len(found) == 1


def test_finished_job_can_not_be_cancelled(run: Run, done: str) -> None:
    ended = run("cancel", done)
    assert ended.exit_code == Exit.REFUSED
    assert "error:" in ended.stderr


def test_cancelled_job_is_no_success(run: Run, uploaded: tuple[str, str]) -> None:
    recipe = {
        "steps": [{"kind": "prune.magnitude", "sparsity": 0.5, "fine_tune": {"epochs": 1000}}]
    }
    Path("long.json").write_text(json.dumps(recipe))
    model, data = uploaded
    job = run("submit", model, "--data", data, "--recipe", "long.json").stdout.strip()
    assert run("cancel", job).exit_code == Exit.OK
    watched = run("watch", job)
    assert watched.exit_code == Exit.FAILED
    assert f"{job} cancelled" in watched.stderr


def test_file_that_is_no_model_is_refused(run: Run) -> None:
    Path("bad.onnx").write_bytes(b"PK\x03\x04 no model at all")
    ended = run("compress", "bad.onnx", "--recipe", "int8-dynamic")
    assert ended.exit_code == Exit.REFUSED
    assert "bad.onnx" in ended.stderr
    assert "user_input/bad_model" in ended.stderr


def test_data_of_another_shape_is_refused_with_what_is_wrong(
    run: Run, uploaded: tuple[str, str]
) -> None:
    np.savez("data.npz", image=np.zeros((40, 3, 9, 9), np.float32), labels=np.arange(40) % 10)
    ended = run("compress", uploaded[0], "--data", "data.npz", "--recipe", "int8")
    assert ended.exit_code == Exit.REFUSED
    assert "image" in ended.stderr
    assert "9" in ended.stderr


def test_keys_are_made_listed_and_revoked(run: Run, service: Service) -> None:
    made = json.loads(run("keys", "create", "laptop", "--json").stdout)
    with Client(service.url, made["secret"]) as client:
        assert client.project().name == "default"
        listed = json.loads(run("keys", "list", "--json").stdout)
        assert "laptop" in {key["name"] for key in listed}
        assert made["secret"] not in json.dumps(listed)
        assert run("keys", "revoke", made["id"]).exit_code == Exit.OK
        with pytest.raises(cli.errors.Unauthorized):
            client.project()
    assert "revoked" in run("keys", "list").stdout


def test_wrong_key_is_refused(run: Run, service: Service) -> None:
    ended = run("jobs", "--url", service.url, "--key", "mp_wrong")
    assert ended.exit_code == Exit.REFUSED
    assert "401" in ended.stderr


def test_without_a_server_the_message_says_how_to_get_one(alone: Run) -> None:
    ended = alone("jobs")
    assert ended.exit_code == Exit.UNREACHABLE
    assert "modelpress serve" in ended.stderr


def test_server_that_does_not_answer_is_named(alone: Run) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    ended = alone("jobs", "--url", url)
    assert ended.exit_code == Exit.UNREACHABLE
    assert url in ended.stderr


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["compress", "model.onnx"], "--recipe"),
        (["compress", "model.onnx", "--recipe", "nope"], "int8-dynamic"),
        (["compress", "model.onnx", "--recipe", "int8"], "needs samples"),
        (["compress", "model.onnx", "--recipe", "moved.json"], "--with initial=FILE"),
        (
            ["submit", "model.onnx", "--recipe", "int8-dynamic", "--with", "initial=m.onnx"],
            "no step of the recipe uses",
        ),
        (["submit", "model.onnx", "--recipe", "int8-dynamic", "--with", "initial"], "ROLE=MODEL"),
        (["compress", "model.onnx", "--recipe", "wrong.json"], "/steps/0/sparsity"),
        (["compress", "model.onnx", "--recipe", "unknown.toml"], "/steps/0"),
        (["compress", "model.onnx", "--recipe", "broken.json"], "can't be read"),
        (["compress", "absent.onnx", "--recipe", "int8-dynamic", "--local"], "absent.onnx"),
        (
            ["compress", "model.onnx", "--recipe", "int8-dynamic", "--constraint", "size:0.3"],
            "metric:goal:value",
        ),
        (
            ["submit", "model.onnx", "--recipe", "int8-dynamic", "--constraint", "a:max_drop:-1"],
            "/metric",
        ),
        (["submit", "model.onnx", "--recipe", "int8-dynamic", "--std", "x"], "std"),
        (["steps", "prune.nothing"], "prune.nothing"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_is_found_before_any_server_is_asked(
    alone: Run, argv: list[str], reason: str
) -> None:
    Path("wrong.json").write_text('{"steps": [{"kind": "prune.magnitude", "sparsity": 1.2}]}')
    Path("moved.json").write_text(json.dumps(MOVED))
    Path("unknown.toml").write_text('[[steps]]\nkind = "prune.everything"\n')
    Path("broken.json").write_text("{")
    ended = alone(*argv)
    assert ended.exit_code == Exit.USAGE, ended.output
    assert reason in " ".join(ended.output.replace("│", " ").split())


def test_recipe_in_toml_is_read(alone: Run) -> None:
    Path("mine.toml").write_text('[[steps]]\nkind = "quantize.int8"\nmode = "dynamic"\n')
    ended = alone("submit", "model.onnx", "--recipe", "mine.toml")
    assert ended.exit_code == Exit.UNREACHABLE


def test_steps_need_no_server(alone: Run) -> None:
    assert "prune-int8" in alone("steps").stdout
    assert "max_layer_sparsity" in alone("steps", "prune.magnitude").stdout
    schemas = json.loads(alone("steps", "--json").stdout)
    assert schemas["quantize.int8"]["properties"]["mode"]["default"] == "static"


def test_local_needs_no_server(alone: Run, directory: Path) -> None:
    argv = ("compress", "model.onnx", "--recipe", "int8", "--data", "data.npz", "--local")
    ended = alone(*argv, "--out", "small")
    assert ended.exit_code == Exit.OK, ended.output
    assert "3/3 verify" in ended.stderr
    assert {p.name for p in (directory / "small").iterdir()} == {"model.onnx", "report.json"}
    assert onnxruntime.InferenceSession("small/model.onnx").get_inputs()[0].name == "image"


def test_other_model_goes_along(run: Run, alone: Run, uploaded: tuple[str, str]) -> None:
    Path("moved.json").write_text(json.dumps(MOVED))
    onnx.save(nets.plain_cnn(1), "untrained.onnx")
    others = ("--recipe", "moved.json", "--with", "initial=untrained.onnx")
    here = alone("compress", "model.onnx", *others, "--local", "--json")
    there = run("compress", uploaded[0], *others, "--out", "there", "--json")
    for ended in (here, there):
        assert ended.exit_code == Exit.OK, ended.output
        size = json.loads(ended.stdout)["report"]["stages"][-1]["size"]
        assert size["nonzero_parameters"] < 0.6 * size["parameters"]


def test_local_says_why_it_failed(alone: Run, directory: Path) -> None:
    Path("bad.onnx").write_bytes(b"no model at all")
    ended = alone("compress", "bad.onnx", "--recipe", "int8-dynamic", "--local", "--json")
    assert ended.exit_code == Exit.FAILED
    assert json.loads(ended.stdout)["failure"]["code"] == "bad_model"
    assert EXIT_FAILED != Exit.FAILED
    assert os.listdir(directory / "bad-compressed") == []
