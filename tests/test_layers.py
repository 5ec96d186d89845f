"""What import-linter (in `make lint`) can't see: what real processes load, and whether every file has its layer."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from modelpress.spec import recipe
from tests import servers

PASSES = servers.ROOT / "workers" / "engine" / "passes"
ENGINE_ONLY = ("torch", "onnx", "onnx_ir", "onnxruntime", "numpy", "PIL")
SERVER_ONLY = ("fastapi", "sqlalchemy", "celery", "kombu", "redis", "obstore", "alembic", "uvicorn")
OF_EXTRAS = ("timm", "torchvision", "safetensors", "huggingface_hub")
PROJECT = tomllib.loads((servers.ROOT / "pyproject.toml").read_text())


def loaded_by(module: str) -> set[str]:
    """The top-level packages that a fresh process has loaded once it has imported `module`."""
    script = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(_python(script).split())


def _python(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=servers.ROOT,
        env={**os.environ, "PYTHONPATH": str(servers.ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "module",
    ["app.main", "app.admin", "app.migrate", "app.sweeper", "workers.tasks", "workers.local"],
)
def test_process_of_the_service_never_loads_the_engine(module: str) -> None:
    assert not loaded_by(module) & {*ENGINE_ONLY}


@pytest.mark.parametrize(
    "module", ["modelpress.client", "modelpress.cli", "modelpress.spec.recipe"]
)
def test_client_never_loads_a_package_of_the_server(module: str) -> None:
    assert not loaded_by(module) & {*SERVER_ONLY, *ENGINE_ONLY, "app", "workers"}


def test_spec_loads_nothing_of_the_client() -> None:
    assert not loaded_by("modelpress.spec.job") & {"httpx", "rich", "typer"}


def test_engine_never_loads_a_package_of_the_server() -> None:
    assert not loaded_by("workers.engine.pipeline") & {*SERVER_ONLY, "app"}


def test_no_module_loads_a_package_of_an_extra() -> None:
    """Not even the one that asks for it: it is loaded when somebody names an architecture."""
    files = (servers.ROOT / "workers" / "engine").rglob("*.py")
    modules = (".".join(f.relative_to(servers.ROOT).with_suffix("").parts) for f in files)
    loaded = loaded_by(", ".join(m for m in sorted(modules) if not m.endswith("__main__")))
    assert "torch" in loaded
    assert not loaded & {*OF_EXTRAS}


def test_measuring_an_artifact_does_not_load_torch() -> None:
    loaded = loaded_by("workers.engine.measure.quality, workers.engine.measure.latency")
    assert "onnxruntime" in loaded
    assert "torch" not in loaded


def passes() -> set[str]:
    """The kinds of all passes, told by their paths: passes/prune/channels.py is prune.channels."""
    files = [f for f in PASSES.glob("*/*.py") if not f.name.startswith("_")]
    return {f"{f.parent.name}.{f.stem}" for f in files}


def test_every_step_has_its_pass_and_every_pass_its_step() -> None:
    assert passes() == set(recipe.STEPS)


def test_every_family_of_the_spec_is_a_folder_of_passes() -> None:
    families = {kind.partition(".")[0] for kind in recipe.STEPS}
    assert families == {f.parent.name for f in PASSES.glob("*/__init__.py")}


@pytest.mark.parametrize("package", ["app", "workers.engine"])
def test_no_module_stands_outside_the_layers(package: str) -> None:
    """A module that no layer names might import anything."""
    folder = servers.ROOT / package.replace(".", "/")
    present = {f"{package}.{m}" for m in _modules(folder)}
    assert present - _layered() == set()


def _modules(folder: Path) -> set[str]:
    found = {f.stem for f in folder.glob("*.py")} | {
        f.parent.name for f in folder.glob("*/__init__.py")
    }
    return found - {"__init__"}


def _layered() -> set[str]:
    layers = [
        layer
        for contract in PROJECT["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
        for layer in contract["layers"]
    ]
    return {name.strip(" ()") for layer in layers for name in layer.split("|")}
