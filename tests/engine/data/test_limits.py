from __future__ import annotations

from pathlib import Path

import pytest

from workers.engine.data import limits

PAGE = Path(__file__).parents[3] / "docs" / "datasets.md"


@pytest.mark.parametrize(
    "said",
    [
        f"{limits.MAX_MEMBERS:,}; relative names of up to {limits.MAX_NAME_CHARS} characters",
        f"inflated | {limits.MAX_INFLATED_BYTES // limits.GIB} GiB",
        f"{limits.MAX_RATIO} to 1, above {limits.RATIO_FREE_BYTES // limits.MIB} MiB",
        f"{limits.MAX_ARRAYS}, of up to {limits.MAX_RANK} dimensions",
        f"| Classes | {limits.MAX_CLASSES:,} |",
        f"{limits.MAX_IMAGE_BYTES // limits.MIB} MiB, {limits.MAX_IMAGE_PIXELS // 1_000_000} million",
    ],
)
def test_limit_is_documented(said: str) -> None:
    assert said in PAGE.read_text()
