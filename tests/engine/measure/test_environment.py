from __future__ import annotations

import subprocess
import sys

import onnxruntime
import pytest

import modelpress
from workers.engine.measure import environment

CPUINFO = """processor\t: 0
model name\t: Some CPU @ 2 GHz
flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8

processor\t: 1
model name\t: Some CPU @ 2 GHz
flags\t\t: fpu avx2 avx512f
"""


def test_versions_and_machine_are_named() -> None:
    got = environment.describe(device="cpu", cores=2, sandbox="none")
    assert got.modelpress == modelpress.__version__
    assert got.onnxruntime == onnxruntime.__version__
    assert got.cpu
    assert (got.cores, got.device, got.sandbox) == (2, "cpu", "none")


def test_flags_are_those_that_every_core_has(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "cpuinfo")
    assert environment.cpu_name() == "Some CPU @ 2 GHz"
    assert environment.cpu_flags() == ("avx2", "avx512f")


def test_a_machine_that_tells_nothing_is_still_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "absent")
    assert environment.cpu_name()
    assert environment.cpu_flags() == ()


def test_measuring_in_a_fresh_process_needs_no_torch() -> None:
    modules = "data, measure.quality, measure.latency, measure.environment, measure.session"
    code = "import sys, " + ", ".join(f"workers.engine.{m.strip()}" for m in modules.split(","))
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
