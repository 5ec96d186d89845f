"""What a child sees of this machine: this Python, the project's own packages, shared libraries, and its job."""

from __future__ import annotations

import glob
import os
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # where the packages lie: site-packages or a checkout
_PACKAGES = ("workers", "modelpress")

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
_LOADERS = ("/lib64/ld-linux-*.so.*", "/lib/ld-linux-*.so.*", "/lib/ld-musl-*.so.*")

_KEPT = (
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    "MKL_NUM_THREADS",
    "NVIDIA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)


def readable() -> tuple[str, ...]:
    """What the interpreter and its packages are made of.

    A prefix that belongs to the system (/usr) is not opened whole, only its libraries.
    """
    paths = {*_LIBRARIES, *(str(ROOT / name) for name in _PACKAGES)}
    for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}:
        paths |= {os.path.join(prefix, name) for name in ("lib", "lib64", "pyvenv.cfg")}
    paths |= {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= set(filter(os.path.isabs, os.environ.get("LD_LIBRARY_PATH", "").split(":")))
    return tuple(sorted(paths))


def listed() -> tuple[str, ...]:
    """Where the import system must see names to find the packages: the checkout, unless they are installed.

    The names of all files in a checkout can then be listed, their content not read.
    """
    return (str(ROOT),)


def executable(program: str) -> tuple[str, ...]:
    """The program, whatever links lead to it, and the loader of shared libraries."""
    loaders = [os.path.realpath(path) for pattern in _LOADERS for path in glob.glob(pattern)]
    return (os.path.realpath(program), *sorted(set(loaders)))


def environment(home: Path) -> dict[str, str]:
    """Built anew: nothing of the worker's environment but what numerical libraries are steered by.

    A fixed hash seed makes sets iterate alike in each run; faulthandler names the line of a crash in the log.
    Threads that wait for each other sleep: spinning, they cost ten times the CPU when cores are shared with others.
    """
    return {
        **{name: os.environ[name] for name in _KEPT if name in os.environ},
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "OMP_WAIT_POLICY": "PASSIVE",
        "ORT_DISABLE_TELEMETRY": "1",
        "PATH": "/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONNOUSERSITE": "1",
        "PYTHONSAFEPATH": "1",
        "TMPDIR": str(home),
        "TZ": "UTC",
        "USER": "job",
    }
