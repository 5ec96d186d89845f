"""The library as its source is now."""

from __future__ import annotations

import pytest

from workers.engine.kernels import build, xnor


@pytest.fixture(scope="module", autouse=True)
def library(tmp_path_factory):
    """Freshly compiled, so that a change of the source is tested whatever is installed."""
    path = tmp_path_factory.mktemp("kernels") / "xnor.so"
    assert build.build(path), "the tests of the kernels need a C compiler"
    before, xnor.LIBRARY = xnor.LIBRARY, path
    xnor._library.cache_clear()
    yield
    xnor.LIBRARY = before
    xnor._library.cache_clear()
