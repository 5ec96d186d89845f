from __future__ import annotations

import numpy as np
import pytest

from tests.engine.data import zips
from workers.engine.data import npy
from workers.engine.errors import BadData


def parse(raw: bytes) -> npy.Header:
    return npy.parse(raw[: npy.HEAD_BYTES], "x", len(raw))


@pytest.mark.parametrize("code", sorted(npy.DTYPES))
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_plain_number_is_read(code: str, order: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(order + code)
    raw = zips.npy(array)
    header = parse(raw)
    assert header.dtype == array.dtype
    assert header.shape == (2, 3)
    assert not header.fortran
    assert raw[header.offset :] == array.tobytes()


def test_fortran_order_is_seen() -> None:
    assert parse(zips.npy(np.asfortranarray(np.ones((2, 3))))).fortran


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_is_read(version: tuple[int, int]) -> None:
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
    assert parse(zips.npy_with_header(text, bytes(8), version)).shape == (2,)


@pytest.mark.parametrize(
    "text",
    [
        "{'shape': (2,), 'descr': '<f4', 'fortran_order': False}",
        "{'descr':'<f4','fortran_order':False,'shape':(2,)}",
        "  { 'descr' : '<f4' , 'fortran_order' : False , 'shape' : ( 2 , ) , }  ",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2L,), }",
    ],
)
def test_headers_of_other_writers_are_read(text: str) -> None:
    assert parse(zips.npy_with_header(text, bytes(8))).shape == (2,)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([{"a": 1}], dtype=object), "Python objects"),
        (np.array(["a"]), "elements of type"),
        (np.array([1 + 2j]), "elements of type"),
        (np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]), "elements of type"),
        (np.array(["2026-01-01"], dtype="M8[D]"), "elements of type"),
        (np.zeros(1, dtype="V8"), "elements of type"),
        (np.array(1.0), "each size must be from 1"),
        (np.zeros((0, 3)), "each size must be from 1"),
        (np.zeros((1,) * 9), "9 dimensions, more than 8"),
    ],
)
def test_other_arrays_are_refused_by_name(array: np.ndarray, reason: str) -> None:
    with pytest.raises(BadData, match=reason) as caught:
        parse(zips.npy(array))
    assert caught.value.layer == "x"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }", "each size"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2147483648, 2147483648)}", "needs"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 10000000000000)}", "each size"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "can't be read"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1" + "0" * 30 + ",)}", "can't be"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", "8 are there"),
        ("{'descr': '<f4', 'fortran_order': 'True', 'shape': (2,)}", "fortran_order"),
        ("{'descr': '<f4', 'fortran_order': False}", "has the keys"),
        ("{'descr': '<f4', 'descr': '<f4', 'shape': (2,)}", "can't be read"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': (1,)}", "has the keys"),
        ("{'descr': __import__('os').system('true'), 'shape': (2,)}", "can't be read"),
        ("[1, 2]", "no dictionary"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (2,)}", "Python objects"),
    ],
)
def test_headers_that_lie_are_refused(text: str, reason: str) -> None:
    with pytest.raises(BadData, match=reason):
        parse(zips.npy_with_header(text, bytes(8)))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "no .npy array"),
        (b"\x93NUMPY\x01", "no .npy array"),
        (b"GIF89a" + bytes(20), "no .npy array"),
        (b"\x93NUMPY\x09\x00" + bytes(20), "version is 9.0"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(20), "more than 10,000"),
        (b"\x93NUMPY\x01\x00\x80\x00{'descr'", "cut short"),
        (zips.npy_with_header("{'é': 1}"), "not ASCII"),
    ],
)
def test_what_is_no_array_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(BadData, match=reason):
        parse(raw)
