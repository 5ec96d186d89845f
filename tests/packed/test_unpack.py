from __future__ import annotations

import hashlib
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from modelpress import packed
from modelpress.packed import container
from modelpress.packed.codecs import SLAB, Codec
from tests.packed import making
from tests.servers import ROOT
from workers.engine.formats.packing import choice, plans
from workers.engine.formats.packing.numbers import blob, number

few = settings(max_examples=25, derandomize=True, deadline=None)
DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8")


@pytest.mark.parametrize("method", making.METHODS)
@few
@given(data=st.data())
def test_every_tensor_comes_back_bit_for_bit(method, data):
    """NaN with any payload, negative zero, infinity: bytes are drawn, not numbers."""
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    shape = data.draw(npst.array_shapes(max_dims=3, max_side=9))
    palette = data.draw(st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=6))
    chosen = data.draw(npst.arrays(np.uint8, shape, elements=st.integers(0, len(palette) - 1)))
    values = np.frombuffer(b"".join(palette), "u8").astype(f"u{min(dtype.itemsize, 8)}")
    array = values[chosen].view("u1" if dtype.kind == "b" else dtype)
    assert making.contents(making.section(array, method), array.nbytes) == array.tobytes()


def noise(dtype: str, size: int = 5000) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.05, size).astype(dtype)


ARRAYS = {
    "float32": noise("f4"),
    "float64": noise("f8"),
    "float16": noise("f2"),
    "bfloat16": noise("f4").astype(ml_dtypes.bfloat16),
    "half-exact float32": noise("f2").astype("f4"),
    "all the same": np.full(9000, 0.1, np.float32),
    "nan of many kinds": np.arange(0x7FC00000, 0x7FC00000 + 900, dtype="u4").view("f4"),
    "counting": np.arange(4000, dtype=np.int64),
    "int8 of channels": np.rint(np.outer(np.arange(1, 41), noise("f4", 200)) * 20).astype("i1"),
    "int4": np.arange(1000).astype(ml_dtypes.int4),
    "uint4": np.arange(1001).astype(ml_dtypes.uint4),
    "pruned": making.pruned_map(60_000).reshape(100, 600).astype(np.uint8),
    "float8": noise("f4").astype(ml_dtypes.float8_e4m3fn),
    "over several slabs": making.pruned_map(SLAB + 700).astype(np.uint8),
    "rows over several slabs": making.pruned_map(3 * 350_100).reshape(3, -1).astype(np.uint8),
}


@pytest.mark.parametrize("method", making.METHODS)
def test_model_comes_out_byte_for_byte(method, tmp_path):
    arrays = {f"t{i}": array for i, array in enumerate(ARRAYS.values())}
    model, file = making.packed_file(tmp_path, method, **arrays)
    assert making.unpacked(file) == model.read_bytes()
    assert len(making.found_cuts(model)) == len(ARRAYS)
    assert file.stat().st_size < 0.7 * model.stat().st_size


@pytest.mark.parametrize(
    ("name", "share"), [("float32", 0.9), ("bfloat16", 0.8), ("float16", 0.93), ("float64", 0.95)]
)
def test_dense_floats_get_smaller_too(name, share):
    array = ARRAYS[name]
    assert len(making.section(array, "entropy")) < share * array.nbytes


def test_two_codes_to_a_byte_are_coded_as_such():
    """As MatMulNBits stores 4-bit weights: low and high half of a byte know nothing of each other."""
    codes = np.clip(np.rint(np.random.default_rng(0).normal(8, 1.5, 40_000)), 0, 15).astype("u1")
    code = making.section(codes[::2] | codes[1::2] << 4, "entropy")
    assert 8 * len(code) < 1.01 * making.entropy_bits(codes) + 400


@pytest.mark.parametrize("dtype", ["f4", "f2", "i4", "u2"])
def test_tables_of_rising_values_take_fewer_bytes_than_the_values(dtype):
    """Sorted, only the steps between them are news."""
    values = np.unique((np.random.default_rng(0).normal(0, 1, 900) * 3000).astype(dtype))
    array = values[np.random.default_rng(1).integers(0, len(values), 40_000)]
    plan, _ = choice.plan(
        array.tobytes(), ir.DataType.from_numpy(array.dtype), array.shape, "entropy"
    )
    assert 0 < len(plan.codebook) < 0.9 * values.nbytes
    assert making.contents(making.section(array, "entropy"), array.nbytes) == array.tobytes()


def test_result_says_how_large_it_is_and_its_digest(tmp_path):
    model, file = making.packed_file(tmp_path, a=ARRAYS["float32"])
    found = packed.unpack(file, tmp_path / "again.onnx")
    assert found.size_bytes == model.stat().st_size
    assert found.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()


def test_decoder_needs_numpy_and_the_coder_alone(tmp_path):
    model, file = making.packed_file(tmp_path, a=ARRAYS["pruned"])
    script = (
        "import sys; from modelpress import packed; packed.unpack(*sys.argv[1:]);"
        "print(*{name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))"
    )
    argv = [sys.executable, "-c", script, str(file), str(tmp_path / "again.onnx")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    third_party = {name for name in done.stdout.split() if not name.startswith(("_", "sitecustom"))}
    assert third_party <= {"modelpress", "numpy", "constriction"}
    assert (tmp_path / "again.onnx").read_bytes() == model.read_bytes()


def test_memory_is_bounded_by_slabs_not_by_tensors(tmp_path):
    _, file = making.packed_file(tmp_path, a=np.zeros(12 * SLAB, np.uint8))
    tracemalloc.start()
    packed.unpack(file, tmp_path / "again.onnx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * SLAB


def rewritten(content: bytes) -> bytes:
    """The same with the checksum that it should have: what an attacker does."""
    at = container.PREFIX_BYTES
    return content[: at - 4] + zlib.crc32(content[at:]).to_bytes(4, "little") + content[at:]


def refused(content: bytes, folder: Path, **options: int) -> str:
    file, target = folder / "bad.mpk", folder / "out.onnx"
    file.write_bytes(content)
    with pytest.raises(packed.PackedError) as caught:
        packed.unpack(file, target, **options)
    assert not target.exists()
    assert not list(folder.glob("*.unfinished"))
    return str(caught.value)


@pytest.fixture(scope="module", params=making.METHODS)
def content(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("held")
    kinds = ("pruned", "float32", "int8 of channels", "int4", "all the same")
    arrays = {f"t{i}": ARRAYS[name].reshape(-1)[:3000] for i, name in enumerate(kinds)}
    arrays["t5"] = ARRAYS["pruned"][:20]
    _, file = making.packed_file(folder, request.param, **arrays)
    return file.read_bytes()


def test_any_changed_byte_is_noticed_by_the_checksum(content, tmp_path):
    for at in np.random.default_rng(0).integers(0, len(content), 60):
        changed = bytearray(content)
        changed[at] ^= 1 << int(at) % 8
        refused(bytes(changed), tmp_path)


def test_file_that_was_cut_anywhere_is_refused(content, tmp_path):
    for size in [*range(60), *np.random.default_rng(0).integers(60, len(content), 40)]:
        refused(content[:size], tmp_path)


def mutants(content: bytes, count: int) -> Iterator[bytes]:
    """The content with bytes changed, put in or taken out, under a checksum that is right again."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(container.PREFIX_BYTES, len(changed)))
            taken, put = rng.integers(0, 3, 2) if rng.random() < 0.3 else (1, 1)
            changed[at : at + taken] = rng.bytes(put)
        yield rewritten(bytes(changed))


def test_mutants_under_a_right_checksum_are_refused_in_words(content, tmp_path):
    """Whatever an attacker writes ends in PackedError or in the same model: never in a crash, or in another model."""
    file, target = tmp_path / "bad.mpk", tmp_path / "out.onnx"
    file.write_bytes(content)
    sha256 = packed.unpack(file, target).sha256
    accepted = 0
    for mutant in mutants(content, 120):
        file.write_bytes(mutant)
        try:
            assert packed.unpack(file, target).sha256 == sha256
            accepted += 1
        except packed.PackedError:
            continue
    assert accepted < 12
    assert hashlib.sha256(target.read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("start", [b"", b"PK\3\4", b"\x93MPK", b"\x93MPK\3" + bytes(200)])
def test_other_files_and_later_versions_are_refused_in_words(start, tmp_path):
    assert (
        "packed model" in (said := refused(start, tmp_path))
        or "version 3" in said
        or "header" in said
    )


def crafted(model_bytes: int, *sections: tuple[int, int, bytes], skeleton: bytes = b"") -> bytes:
    """A packed file as an attacker writes it."""
    deflated = plans.deflate(skeleton)
    sizes = [model_bytes, len(skeleton), len(deflated), len(sections)]
    for before, size, code in sections:
        sizes += [before, size, len(code)]
    body = bytes(32) + b"".join(map(number, sizes)) + deflated
    body += b"".join(code for *_, code in sections)
    return rewritten(container.MAGIC + bytes([container.VERSION]) + bytes(4) + body)


def entropy_section(symbols: bytes, flags: bytes = b"\0", columns: int = 0) -> bytes:
    table = number(2) + b"\1\0"
    return number(columns) + bytes([Codec.ENTROPY, 8]) + table + flags + blob(symbols)


def cut_section(flags: bytes, code: bytes = b"\0\xff") -> bytes:
    """Of an alphabet of three symbols, and cells."""
    return number(0) + bytes([Codec.ENTROPY, 8]) + number(3) + b"\1\0" + flags + code


BOMBS = {
    "a model over the limit": crafted(2**40, skeleton=b"x"),
    "sizes that do not add up": crafted(500, (0, 10, b"\0\0" + bytes(10)), skeleton=b"x"),
    "a number without end": rewritten(b"\x93MPK\2" + bytes(36) + b"\xff" * 40),
    "a skeleton that grows": rewritten(
        b"\x93MPK\2"
        + bytes(36)
        + number(100)
        + number(100)
        + blob(plans.deflate(bytes(10**6)))[:2]
        + b"\0"
    ),
    "raw bytes that are not there": crafted(10**6, (0, 10**6, b"\0\0abc")),
    "DEFLATE that grows": crafted(100, (0, 100, b"\0\1" + blob(plans.deflate(bytes(10**6))))),
    "more tensors than bytes": rewritten(b"\x93MPK\2" + bytes(36) + bytes(3) + number(60_000)),
    "symbols over the limit": crafted(100, (0, 100, b"\0\6\x08" + number(2**20) + b"\1\0")),
    "planes within planes": crafted(100, (0, 100, b"\0\2\4\0\2\4\0")),
    "a codec that is none": crafted(100, (0, 100, b"\0\x63")),
    "an entropy code cut short": crafted(100, (0, 100, entropy_section(b"\0"))),
    "contexts without columns": crafted(100, (0, 100, entropy_section(b"\1", b"\3\0"))),
    "a symbol beyond its alphabet": crafted(4, (0, 4, cut_section(b"\x10\2"))),
    "low bits that are none": crafted(4, (0, 4, cut_section(b"\x10\0"))),
    "low bits over the limit": crafted(4, (0, 4, cut_section(b"\x10\x10"))),
    "cells even and not": crafted(4, (0, 4, cut_section(b"\x30\2"))),
    "no cells": crafted(4, (0, 4, cut_section(b"\x20\0"))),
    "more cells than symbols": crafted(4, (0, 4, cut_section(b"\x20\4\0\0"))),
    "cells that leave symbols out": crafted(4, (0, 4, cut_section(b"\x20\2\0"))),
    "a symbol behind the last cell's": crafted(4, (0, 4, cut_section(b"\x20\1\x20"))),
    "bits of cells that are not there": crafted(4, (0, 4, cut_section(b"\x20\1\x20", b"\0"))),
    "steps of bytes": crafted(4, (0, 4, b"\0" + bytes([Codec.ENTROPY, 8]) + number(3) + b"\2\0")),
    "columns that do not fit": crafted(100, (0, 100, entropy_section(b"\1", b"\3\0", 7))),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_hostile_files_are_refused_before_they_cost_anything(bomb, tmp_path):
    tracemalloc.start()
    refused(bomb, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("width", "symbols", "flags", "reason"),
    [
        (1, 3, b"\0", "number of symbols is over 2"),
        (8, 257, b"\0", "number of symbols is over 256"),
        (16, 1025, b"\2\0", "contexts of 1,025 symbols, at most 1,024"),
    ],
)
def test_alphabets_that_take_long_and_tell_nothing_are_refused(width, symbols, flags, reason):
    """A code of no bytes is that of any number of first symbols: what it costs to decode must not grow with what a file claims."""
    first = bytes(max(width // 8, 1))
    table = bytes([Codec.ENTROPY, width]) + number(symbols) + b"\1" + first
    with pytest.raises(packed.PackedError, match=reason):
        making.contents(number(8) + table + flags + blob(b""), 4096)


def test_caller_may_ask_for_a_lower_limit(content, tmp_path):
    assert "over 1,000" in refused(content, tmp_path, max_bytes=1000)


def test_small_tensors_stay_where_they_are(tmp_path):
    model, file = making.packed_file(tmp_path, shape=np.arange(4), weight=ARRAYS["float32"])
    assert [cut.name for cut in making.found_cuts(model)] == ["weight"]
    assert onnx.load_from_string(making.unpacked(file)).graph.initializer[0].name == "shape"
