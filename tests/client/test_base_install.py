"""The base install is the client: what only the extras bring may be missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {"fastapi", "sqlalchemy", "celery", "torch", "onnx", "onnxruntime", "numpy"}


def needed(name: str, extras: frozenset[str], seen: set[str]) -> Iterator[metadata.Distribution]:
    """A distribution and all that it needs, without its optional extras."""
    distribution = metadata.distribution(name)
    yield distribution
    for line in distribution.requires or ():
        wanted = Requirement(line)
        markers = [{"extra": extra} for extra in extras] or [{"extra": ""}]
        here = wanted.marker is None or any(wanted.marker.evaluate(m) for m in markers)
        if here and wanted.name.lower() not in seen:
            seen.add(wanted.name.lower())
            yield from needed(wanted.name, frozenset(wanted.extras), seen)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what `pip install modelpress` brings and nothing else."""
    directory = tmp_path_factory.mktemp("site")
    for name in ("modelpress", "app", "workers", "migrations"):
        (directory / name).symlink_to(ROOT / name)
    for distribution in needed("modelpress", frozenset(), {"modelpress"}):
        for file in distribution.files or ():
            top = directory / file.parts[0]
            if file.parts[0] != ".." and not top.exists():
                top.symlink_to(Path(str(distribution.locate_file(file.parts[0]))))
    return directory


def run(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    setup = f"import sys; sys.path.insert(0, {str(site)!r})\n"
    argv = [sys.executable, "-I", "-S", "-B", "-c", setup + code]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def command_line(site: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return run(
        site, f"sys.argv = {['modelpress', *argv]!r}\nfrom modelpress import cli\ncli.main()"
    )


def test_base_install_has_no_server_package(site: Path) -> None:
    assert {path.name for path in site.iterdir()}.isdisjoint(FORBIDDEN)


def test_client_and_command_line_need_no_server_package(site: Path) -> None:
    done = run(site, "from modelpress import client, cli, embedded, errors, resources; print('ok')")
    assert done.stderr == ""
    assert done.stdout == "ok\n"


def test_serve_says_which_extra_it_needs(site: Path) -> None:
    done = command_line(site, "serve")
    assert "pip install 'modelpress[server]'" in done.stderr
    assert done.returncode == 1


def test_local_says_which_extra_it_needs(site: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    model = str(tmp_path / "m.onnx")
    done = command_line(site, "compress", model, "--recipe", "int8-dynamic", "--local")
    assert "pip install 'modelpress[worker]'" in done.stderr
    assert done.returncode == 1
