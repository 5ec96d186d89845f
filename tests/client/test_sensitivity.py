"""`modelpress sensitivity` on a file of this machine, and what may be given as --sensitivity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from modelpress import cli
from modelpress._ended import Exit
from modelpress.spec.sensitivity import Layer, Measurement, Sensitivity

LAYERS = tuple(f"layer{n}.weight" for n in range(8))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [
        Measurement(
            layer=name,
            method="bits",
            amount=bits,
            bytes_before=100,
            bytes_after=10 * bits,
            error=0.1,
            agreement=0.9,
            accuracy=(80 + bits + number) / 100,
        )
        for number, name in enumerate(LAYERS)
        for bits in (2, 4)
    ]
    layers = tuple(Layer(name=name, kind="Gemm", shape=(5, 5)) for name in LAYERS)
    table = Sensitivity(
        model_sha256="ab" * 32,
        seed=0,
        samples=200,
        group_size=32,
        accuracy=0.95,
        layers=layers,
        rows=tuple(rows),
    )
    path = tmp_path / "sensitivity.json"
    path.write_text(table.model_dump_json())
    return path


def run(*argv: object) -> Result:
    return CliRunner().invoke(cli.app, [str(part) for part in argv])


def test_table_has_a_row_for_each_layer_where_there_are_many(file: Path) -> None:
    shown = run("sensitivity", file).stdout
    assert "accuracy as it is 95.00%" in shown
    (row,) = [line.split() for line in shown.splitlines() if "layer3.weight" in line]
    assert row == ["layer3.weight", "87.00%", "85.00%"]


def test_picture_and_json_hold_every_layer(file: Path) -> None:
    told = run("sensitivity", file, "--svg", "s.svg", "--json")
    assert told.exit_code == Exit.OK, told.output
    assert Sensitivity.model_validate_json(told.stdout).layers[7].name == LAYERS[7]
    assert all(name in Path("s.svg").read_text() for name in LAYERS)


def test_file_that_holds_something_else_is_a_usage_error(file: Path) -> None:
    file.write_text("{}")
    told = run("sensitivity", file)
    assert told.exit_code == Exit.USAGE
    assert "no table of sensitivities: /model_sha256" in told.output


def test_recipe_that_uses_none_takes_none(file: Path) -> None:
    Path("m.onnx").write_bytes(b"")
    argv = ("compress", "m.onnx", "--recipe", "int8-dynamic", "--sensitivity", file, "--local")
    told = run(*argv)
    assert told.exit_code == Exit.USAGE
    assert "no step of the recipe uses" in told.output


def test_server_takes_ids_only(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELPRESS_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELPRESS_API_KEY", "mp_none")
    recipe = {"steps": [{"kind": "quantize.bits", "mixed": {"average_bits": 4}}]}
    Path("r.json").write_text(json.dumps(recipe))
    argv = ("submit", "mdl_x", "--recipe", "r.json", "--data", "dat_x", "--sensitivity", file)
    told = run(*argv)
    assert told.exit_code == Exit.USAGE, told.output
    assert "is no id of sensitivities on the server" in told.output


def test_only_an_id_of_sensitivities_is_removed(file: Path) -> None:
    told = run("sensitivity", "mdl_x", "--remove")
    assert told.exit_code == Exit.USAGE, told.output
    assert "'mdl_x' is none" in told.output
    assert run("sensitivity", file, "--remove").exit_code == Exit.USAGE
    assert file.exists()
