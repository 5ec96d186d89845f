"""Mutated files end in a refusal or in a dataset, never in another exception and never in much memory."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.data import zips
from workers.engine import data
from workers.engine.data import npy
from workers.engine.errors import BadData

PEAK_BYTES = 16 << 20

MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "cut", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\0" * 4, b"PK\x05\x06", b"PK\x01\x02"]),
        ),
    ),
    min_size=1,
    max_size=6,
)


def mutated(content: bytes, mutations: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, value in mutations:
        at = int(where * len(content))
        if kind == "set":
            content = content[:at] + value + content[at + len(value) :]
        elif kind == "insert":
            content = content[:at] + value + content[at:]
        elif kind == "cut":
            content = content[:at] + content[at + len(value) :]
        else:
            content = content[:at] + content[at : at + 64] + content[at:]
    return content


@functools.cache
def seeds() -> dict[str, bytes]:
    """Small honest files of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        arrays = {"image": np.ones((4, 1, 8, 8), np.float32), "labels": np.arange(4)}
        np.savez(path / "stored.npz", **arrays)
        np.savez_compressed(path / "deflated.npz", **arrays)
        pictures = {
            f"{kind}/{n}.png": zips.picture(seed=n) for kind in ("cat", "dog") for n in (0, 1)
        }
        zips.zipped(path / "images.zip", pictures)
        return {file.stem: file.read_bytes() for file in path.iterdir()}


def read(content: bytes, member: str = "") -> None:
    """Inspects and opens a file, or a sound archive whose only member is `content`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data"
        if member:
            zips.zipped(path, {member: content})
        else:
            path.write_bytes(content)
        for attempt in (
            lambda: data.inspect(path, path.parent),
            lambda: data.open(path, [zips.IMAGE_INPUT], zips.PLAIN, path.parent).batch([0]),
        ):
            with contextlib.suppress(BadData):
                attempt()


@pytest.mark.parametrize("kind", ["stored", "deflated", "images"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations=MUTATIONS)
def test_a_mutated_file_is_read_or_refused(kind: str, mutations) -> None:
    content = mutated(seeds()[kind], mutations)
    tracemalloc.start()
    try:
        read(content)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < PEAK_BYTES


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations=MUTATIONS)
def test_a_mutated_picture_is_read_or_refused(format: str, mutations) -> None:
    read(mutated(zips.picture((16, 16), format=format), mutations), "cat/1.png")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations=MUTATIONS)
def test_a_mutated_array_is_read_or_refused(mutations) -> None:
    read(mutated(zips.npy(np.ones((4, 1, 8, 8), np.float32)), mutations), "image.npy")


@settings(max_examples=300, deadline=None)
@given(mutations=MUTATIONS, version=st.sampled_from([(1, 0), (2, 0), (3, 0)]))
def test_a_mutated_header_is_read_or_refused(mutations, version: tuple[int, int]) -> None:
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }"
    raw = mutated(zips.npy_with_header(text, bytes(48), version), mutations)
    with contextlib.suppress(BadData):
        header = npy.parse(raw[: npy.HEAD_BYTES], "x", len(raw))
        assert header.offset + header.size_bytes == len(raw)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(max_codepoint=255), max_size=300))
def test_any_text_as_header_is_read_or_refused(text: str) -> None:
    raw = zips.npy_with_header(text)
    with pytest.raises(BadData):
        npy.parse(raw, "x", len(raw))
