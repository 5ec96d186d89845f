"""Products of signs by XNOR and popcount, against float arithmetic: equal to the last bit."""

from __future__ import annotations

import importlib.machinery
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.kernels.operands import noise
from workers.engine.errors import Unsupported
from workers.engine.kernels import build, xnor


def signs(x: np.ndarray) -> torch.Tensor:
    return torch.where(torch.from_numpy(x) >= 0, 1.0, -1.0)


def ways() -> tuple[str, ...]:
    return xnor.WAYS[: xnor.WAYS.index(xnor.best()) + 1]


@pytest.mark.parametrize("n", [1, 8, 63, 64, 65, 256, 300, 511, 512, 784, 8192])
@pytest.mark.parametrize("rows", [(1, 1), (3, 5), (2, 9)])
def test_products_are_those_of_floats(n, rows):
    a, b = noise(rows[0], n), noise(rows[1], n, seed=1)
    wanted = (signs(a) @ signs(b).T).numpy()
    for way in ways():
        got = xnor.matmul(xnor.pack(a, way), xnor.pack(b, way), way)
        assert np.array_equal(got, wanted), way


def test_rows_that_differ_everywhere_do_not_overflow():
    n = 64 * 4 * 31 * 3 + 64 * 5
    one = xnor.pack(np.ones((1, n), np.float32))
    other = xnor.pack(-np.ones((4, n), np.float32))
    for way in ways():
        assert xnor.matmul(one, other, way).tolist() == [[-n] * 4]
        assert xnor.matmul(one, one, way).tolist() == [[n]]


@pytest.mark.parametrize("channels", [1, 3, 64, 70, 200])
@pytest.mark.parametrize(
    ("kernel", "strides", "pads"),
    [
        ((3, 3), (1, 1), (1, 1, 1, 1)),
        ((3, 3), (2, 2), (1, 1, 1, 1)),
        ((5, 4), (2, 1), (2, 0, 1, 3)),
        ((1, 1), (1, 1), (0, 0, 0, 0)),
        ((3, 3), (1, 1), (4, 4, 4, 4)),
    ],
)
def test_convolutions_are_those_of_floats_padded_with_ones(channels, kernel, strides, pads):
    images, filters = noise(2, channels, 7, 6), noise(5, channels, *kernel, seed=1)
    top, left, bottom, right = pads
    padded = torch.nn.functional.pad(signs(images), (left, right, top, bottom), value=1.0)
    wanted = torch.nn.functional.conv2d(padded, signs(filters), stride=strides)
    packed = [xnor.pack(x.transpose(0, 2, 3, 1)) for x in (images, filters)]
    for way in ways():
        got = xnor.convolve(*packed, strides=strides, pads=pads, way=way)
        assert np.array_equal(got.transpose(0, 3, 1, 2), wanted.numpy()), way


def test_zero_and_minus_zero_are_signs_of_one_and_nan_is_none():
    x = np.array([[0.0, -0.0, 1e-45, -1e-45, np.inf, -np.inf, np.nan, -1.0]] * 8, np.float32)
    for way in ways():
        words = xnor.pack(x.reshape(1, 64), way).words
        assert np.unpackbits(words.view(np.uint8), bitorder="little")[:8].tolist() == [
            *(1, 1, 1, 0, 1, 0, 0, 0)
        ]


@pytest.mark.parametrize("n", [1, 8, 9, 784])
def test_normalization_and_sign_fold_into_whole_numbers(n):
    """Also where gamma is negative or zero (methods of F: BN + sign)."""
    rng = np.random.default_rng(n)
    channels = 40
    gamma, beta, mean = (rng.normal(size=channels).astype(np.float32) for _ in range(3))
    mean *= np.sqrt(n)
    gamma[:6] = 0
    beta[:3] = np.abs(beta[:3])
    beta[6:8] = 0
    mean[8:10] = np.float32(n)
    deviation = np.sqrt(rng.uniform(0.1, n, channels).astype(np.float32) + np.float32(1e-4))

    def normalized(s):
        return (s - mean) / deviation * gamma + beta

    folded = xnor.thresholds(normalized, n)
    sums = np.arange(-n, n + 1, 2).astype(np.int32)[:, None].repeat(channels, axis=1)
    wanted = np.where(normalized(sums.astype(np.float32)) >= 0, 1.0, -1.0)
    assert np.array_equal(folded.signs(sums), wanted)
    assert folded.flipped.any()
    assert not folded.flipped.all()


def test_a_binary_layer_is_whole_numbers_from_signs_to_signs():
    """Convolution, scale, bias, normalization and sign in float, against kernel and thresholds."""
    x, w = noise(2, 32, 6, 6), noise(16, 32, 3, 3, seed=1)
    alpha, bias, gamma, beta = (noise(16, seed=s) for s in (2, 3, 4, 5))
    alpha = np.abs(alpha)
    n = 32 * 9

    def after(s):
        return (alpha * s + bias) * gamma + beta

    padded = torch.nn.functional.pad(signs(x), (1, 1, 1, 1), value=1.0)
    sums = torch.nn.functional.conv2d(padded, signs(w)).numpy().transpose(0, 2, 3, 1)
    wanted = np.where(after(sums) >= 0, 1.0, -1.0)
    packed = [xnor.pack(a.transpose(0, 2, 3, 1)) for a in (x, w)]
    got = xnor.thresholds(after, n).signs(xnor.convolve(*packed, pads=(1, 1, 1, 1)))
    assert np.array_equal(got, wanted)


def test_operands_that_do_not_fit_are_refused():
    a, b = xnor.pack(noise(2, 64)), xnor.pack(noise(2, 65))
    with pytest.raises(ValueError, match="rows of 64 and 65 signs"):
        xnor.matmul(a, b)
    with pytest.raises(ValueError, match="images of 64 channels"):
        xnor.convolve(a, b)
    image, wide = xnor.pack(noise(1, 2, 2, 8)), xnor.pack(noise(1, 3, 3, 8))
    with pytest.raises(ValueError, match="filters of 3x3 do not fit into 2x2"):
        xnor.convolve(image, wide)


def test_without_a_library_the_way_out_is_told(tmp_path):
    before, xnor.LIBRARY = xnor.LIBRARY, tmp_path / "missing.so"
    xnor._library.cache_clear()
    try:
        assert not xnor.is_available()
        with pytest.raises(Unsupported, match="there was no C compiler"):
            xnor.pack(noise(1, 64))
    finally:
        xnor.LIBRARY = before
        xnor._library.cache_clear()


def test_without_a_compiler_nothing_is_built_and_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert build.compiler() is None
    assert not build.build(tmp_path / "xnor.so")
    assert list(tmp_path.iterdir()) == []


def test_the_source_compiles_without_a_warning(tmp_path):
    found = build.compiler()
    assert found is not None
    command = [found, *build.FLAGS, "-Wall", "-Wextra", "-Werror", *map(str, build.SOURCES)]
    done = subprocess.run([*command, "-o", str(tmp_path / "x.so")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_by_hand_it_builds_beside_the_source(tmp_path):
    copy = tmp_path / "kernels"
    copy.mkdir()
    for name in ("build.py", "xnor.h", "xnor.c", "operators.c", "xnor.py"):
        (copy / name).write_bytes((Path(build.__file__).with_name(name)).read_bytes())
    subprocess.run([sys.executable, str(copy / "build.py")], check=True)
    assert (copy / "libxnor.so").exists()
    module = importlib.machinery.PathFinder.find_spec("xnor", [str(copy)])
    assert module is not None
    assert module.origin == str(copy / "xnor.py"), "the library hides the module"
