"""Builds the kernels beside their source where there is a C compiler: a hook of the package's build, and by hand

    python workers/engine/kernels/build.py

Without a compiler there are no kernels, and nothing else is missing.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCES, LIBRARY = (HERE / "xnor.c", HERE / "operators.c"), HERE / "libxnor.so"
FLAGS = ("-O3", "-std=c11", "-fPIC", "-shared", "-ffp-contract=off")


def compiler() -> str | None:
    """The C compiler of the environment: $CC, cc, gcc or clang."""
    wanted = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    return next((found for name in wanted if name and (found := shutil.which(name))), None)


def build(library: Path = LIBRARY) -> bool:
    """Compiles the kernels; whether there was a compiler that could. The library appears whole or not at all."""
    found = compiler()
    if found is None:
        return False
    unfinished = library.with_suffix(f".{os.getpid()}")
    command = [found, *FLAGS, *map(str, SOURCES), "-o", str(unfinished)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
        return False
    os.replace(unfinished, library)
    return True


def get_build_hook() -> type[Any]:
    """What hatchling asks for."""
    interface = importlib.import_module("hatchling.builders.hooks.plugin.interface")
    base: Any = interface.BuildHookInterface

    class Kernels(base):  # type: ignore[misc]
        """Puts the library into a wheel, which then is for this platform alone."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            if self.target_name != "wheel" or not build():
                return
            if version == "standard":
                build_data["artifacts"].append("workers/engine/kernels/libxnor.so")
                build_data["pure_python"] = False
                build_data["tag"] = _tag()

    return Kernels


def _tag() -> str:
    """Of a wheel for this platform that needs no particular Python: the library knows nothing of it."""
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return f"py3-none-{platform}"


if __name__ == "__main__":
    sys.exit(0 if build() else "no C compiler could build the kernels: install one, or do without")
