"""A .safetensors file gives the tensors that were saved, or is refused: its header is an attacker's until proven."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.errors import BadModel, EngineError, Unsupported
from workers.engine.formats import safetensors as reader

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
NEXT = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}


def written(path: Path, header: bytes | dict[str, Any], data: bytes, length: int = -1) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length < 0 else length) + text + data)
    return path


@pytest.mark.parametrize("dtype", reader.DTYPES.values(), ids=reader.DTYPES)
def test_tensors_are_those_that_were_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    saved = {
        "byte": torch.tensor([7], dtype=torch.uint8),
        "many": torch.arange(12).reshape(3, 4).to(dtype),
        "none": torch.zeros(0, 4, dtype=dtype),
        "one": torch.tensor(1, dtype=dtype),
    }
    safetensors.torch.save_file(saved, tmp_path / "a", metadata={"format": "pt"})
    found = reader.read(tmp_path / "a")
    assert found.keys() == saved.keys()
    for name, tensor in saved.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_tensor_at_an_odd_place_is_read(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = written(tmp_path / "a", header + b" " * (-len(header) % 8 + 1), struct.pack("<f", 2.5))
    assert reader.read(path)["a"].tolist() == [2.5]


REFUSED: dict[str, tuple[bytes | dict[str, Any], bytes]] = {
    "no JSON": (b"{", b""),
    "no text": (b"{\xff}", b""),
    "no object": (b"[]", b""),
    "endless nesting": (b'{"a":' + b"[" * 100_000, b""),
    "an endless number": (b'{"a":' + b"9" * 10_000 + b"}", b""),
    "no tensor": ({"__metadata__": {}}, b""),
    "a name twice": (
        b'{"a":' + json.dumps(GOOD).encode() + b',"a":' + json.dumps(NEXT).encode() + b"}",
        bytes(16),
    ),
    "a shape twice": (b'{"a":{"dtype":"U8","shape":[1],"shape":[8],"data_offsets":[0,8]}}', bytes(8)),
    "a name with a line break": ({"a\n": GOOD}, bytes(8)),
    "a name without end": ({"a" * 257: GOOD}, bytes(8)),
    "an empty name": ({"": GOOD}, bytes(8)),
    "no description": ({"a": [GOOD]}, bytes(8)),
    "a field too many": ({"a": {**GOOD, "file": "/etc/passwd"}}, bytes(8)),
    "a field too few": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "an unknown type": ({"a": {**GOOD, "dtype": "F8_E4M3"}}, bytes(8)),
    "a type that is none": ({"a": {**GOOD, "dtype": ["F32"]}}, bytes(8)),
    "another type than its bytes": ({"a": {**GOOD, "dtype": "F64"}}, bytes(8)),
    "a negative size": ({"a": {**GOOD, "shape": [-2]}}, bytes(8)),
    "two negative sizes": ({"a": {**GOOD, "shape": [-1, -2]}}, bytes(8)),
    "a fractional size": ({"a": {**GOOD, "shape": [2.0]}}, bytes(8)),
    "a truth for a size": ({"a": {**GOOD, "shape": [True, 2]}}, bytes(8)),
    "a size beyond the limit": ({"a": {**GOOD, "shape": [2**40, 0], "data_offsets": [0, 0]}}, b""),
    "too many axes": ({"a": {**GOOD, "shape": [2, *[1] * 8]}}, bytes(8)),
    "three places": ({"a": {**GOOD, "data_offsets": [0, 8, 16]}}, bytes(8)),
    "places in reverse": ({"a": {**GOOD, "data_offsets": [8, 0]}}, bytes(8)),
    "places beyond the file": ({"a": {**GOOD, "data_offsets": [8, 16]}}, bytes(8)),
    "places that overlap": ({"a": GOOD, "b": {**GOOD, "data_offsets": [4, 12]}}, bytes(12)),
    "the same places": ({"a": GOOD, "b": GOOD}, bytes(8)),
    "a gap": ({"a": GOOD, "b": {**GOOD, "data_offsets": [12, 20]}}, bytes(20)),
    "bytes that nobody claims": ({"a": GOOD}, bytes(9)),
    "bytes that are missing": ({"a": GOOD, "b": NEXT}, bytes(15)),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_hostile_header_is_refused(what: str, tmp_path: Path) -> None:
    with pytest.raises((BadModel, Unsupported)):
        reader.read(written(tmp_path / "a", *REFUSED[what]))


@pytest.mark.parametrize("length", [10_000, reader.MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_header_longer_than_the_file_or_the_limit_is_refused(length: int, tmp_path: Path) -> None:
    path = written(tmp_path / "a", {"a": GOOD}, bytes(8), length)
    with pytest.raises(BadModel, match=f"{length:,}"):
        reader.read(path)


def test_too_many_tensors_are_refused(tmp_path: Path) -> None:
    about = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    header = {str(number): about for number in range(reader.MAX_TENSORS + 1)}
    with pytest.raises(BadModel, match="20,000"):
        reader.read(written(tmp_path / "a", header, b""))


def test_too_many_bytes_are_refused_before_any_is_read(tmp_path: Path) -> None:
    size = reader.MAX_BYTES + 1
    about = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    path = written(tmp_path / "a", {"a": about}, b"")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)
    with pytest.raises(BadModel, match=f"{reader.MAX_BYTES:,}"):
        reader.read(path)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
SIZES = st.lists(st.integers(0, 9), max_size=3) | ODD
TYPES = st.sampled_from(["F32", "U8", "I64"]) | ODD
ABOUT = st.fixed_dictionaries({"dtype": TYPES, "shape": SIZES, "data_offsets": SIZES}) | ODD


@settings(max_examples=60, derandomize=True, deadline=None)
@given(header=st.dictionaries(st.text(max_size=4), ABOUT, max_size=3), data=st.binary(max_size=24))
def test_any_header_is_read_or_refused(
    header: dict[str, Any], data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = written(tmp_path_factory.getbasetemp() / "fuzzed", header, data)
    try:
        found = reader.read(path)
    except EngineError:
        return
    assert sum(tensor.nbytes for tensor in found.values()) == len(data)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(at=st.integers(0, 190), to=st.binary(min_size=1, max_size=3))
def test_any_change_to_a_file_is_read_or_refused(
    at: int, to: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed"
    safetensors.torch.save_file({"a.b": torch.ones(2, 3), "c": torch.zeros(4)}, path)
    content = bytearray(path.read_bytes())
    content[at : at + len(to)] = to
    path.write_bytes(content)
    try:
        reader.read(path)
    except EngineError:
        return
