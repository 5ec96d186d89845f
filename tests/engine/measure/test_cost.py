from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.engine import nets
from workers.engine import formats
from workers.engine.measure import cost


@pytest.mark.parametrize("batch", [1, 3])
def test_macs_are_of_one_sample_and_by_operator(tmp_path: Path, batch: int) -> None:
    onnx.save(nets.plain_cnn(), tmp_path / "a.onnx")
    got = cost.measure(formats.load(tmp_path / "a.onnx"), {"image": (batch, 1, 8, 8)})
    convolutions = 8 * 8 * 8 * 9 + 4 * 4 * 16 * 8 * 9
    assert got.macs_by_operator == {"Conv": convolutions, "Gemm": 256 * 32 + 32 * 10}
    assert got.macs == sum(got.macs_by_operator.values())
