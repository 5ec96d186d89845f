"""deploy/venv.sh, the first thing that runs on a fresh machine: it works or says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests import servers

SCRIPT = servers.ROOT / "deploy" / "venv.sh"


def run(python: Path | str, venv: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": str(python), "VENV": str(venv)}
    return subprocess.run([SCRIPT], env=env, capture_output=True, text=True)


def pretender(path: Path, refused: str) -> Path:
    """A Python that fails when it is asked for something."""
    path.write_text(
        f'#!/bin/sh\ncase "$*" in *"{refused}"*) exit 1;; esac\nexec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return path


def test_environment_has_pip_and_is_kept_the_second_time(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    assert run(sys.executable, venv).returncode == 0
    made = (venv / "pyvenv.cfg").stat().st_mtime_ns
    assert subprocess.run([venv / "bin/python", "-m", "pip", "--version"]).returncode == 0
    assert run(sys.executable, venv).returncode == 0
    assert (venv / "pyvenv.cfg").stat().st_mtime_ns == made


def test_half_made_environment_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to("/nonexistent/python")
    assert run(sys.executable, tmp_path / "venv").returncode == 0


def test_missing_python_is_named(tmp_path: Path) -> None:
    done = run("nosuchpython", tmp_path / "venv")
    assert done.returncode == 1
    assert "no nosuchpython found; install Python 3.11 or newer" in done.stderr


def test_old_python_is_refused_with_its_version(tmp_path: Path) -> None:
    done = run(pretender(tmp_path / "python", "version_info"), tmp_path / "venv")
    assert done.returncode == 1
    assert "ModelPress needs 3.11 or newer" in done.stderr


def test_python_without_any_way_to_pip_is_told_the_package(tmp_path: Path) -> None:
    python = pretender(tmp_path / "python", "pip")
    for tool in ("rm", "id"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    env = {"PATH": str(tmp_path), "PYTHON": str(python), "VENV": str(tmp_path / "venv")}
    done = subprocess.run(["/bin/bash", SCRIPT], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "sudo apt install python3-venv" in done.stderr
