"""Where the numbers come from."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import modelpress
from modelpress.spec.report import Environment

CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimddp",  # ARM: dot products of int8
    "i8mm",
)

CPUINFO = Path("/proc/cpuinfo")


def describe(*, device: str, cores: int, sandbox: str) -> Environment:
    """Names the machine and the versions. Versions come from package metadata: nothing is imported."""
    return Environment(
        modelpress=modelpress.__version__,
        python=platform.python_version(),
        torch=metadata.version("torch"),
        onnx=metadata.version("onnx"),
        onnxruntime=metadata.version("onnxruntime"),
        cpu=cpu_name(),
        cpu_flags=cpu_flags(),
        cores=cores,
        device=device,
        sandbox=sandbox,
    )


def cpu_name() -> str:
    """Processor as the kernel names it; its architecture where the kernel doesn't say."""
    return next(_cpuinfo("model name"), "") or platform.processor() or platform.machine()


def cpu_flags() -> tuple[str, ...]:
    """Those of `CPU_FLAGS` that every core has."""
    lines = [set(flags.split()) for key in ("flags", "Features") for flags in _cpuinfo(key)]
    shared = set.intersection(*lines) if lines else set()
    return tuple(flag for flag in CPU_FLAGS if flag in shared)


def _cpuinfo(wanted: str) -> Iterator[str]:
    try:
        text = CPUINFO.read_text(errors="replace")
    except OSError:  # not Linux, or not readable inside the fence
        return
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == wanted:
            yield value.strip()
