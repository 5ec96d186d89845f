"""Archives as honest programs make them, and as liars do."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from modelpress.spec.inspection import TensorInfo
from modelpress.spec.job import Images

IMAGE_INPUT = TensorInfo(name="image", dtype="float32", shape=("batch", 1, 8, 8))
PLAIN = Images()


def zipped(path: Path, members: Mapping[str, bytes], *, deflate: bool = False) -> Path:
    method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return path


def npy(array: np.ndarray) -> bytes:
    raw = io.BytesIO()
    np.lib.format.write_array(raw, array)
    return raw.getvalue()


def npy_with_header(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """An array whose header is this text."""
    text = header.encode("latin1") + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + data


def digits(path: Path, samples: int = 40, **arrays: np.ndarray) -> Path:
    """A small labelled dataset for `IMAGE_INPUT`; `arrays` replace or add."""
    rng = np.random.default_rng(0)
    given = {
        "image": rng.normal(size=(samples, 1, 8, 8)).astype(np.float32),
        "labels": np.arange(samples) % 4,
    }
    np.savez(path, **(given | arrays))
    return path


def picture(
    size: tuple[int, int] = (8, 8), *, seed: int = 0, mode: str = "RGB", format: str = "PNG"
) -> bytes:
    """An image file of noise; size is (width, height)."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    raw = io.BytesIO()
    Image.fromarray(pixels).save(raw, format)
    return raw.getvalue()


def patched(path: Path, at: int, value: bytes) -> Path:
    """Overwrites bytes of a file; a negative offset counts from its end."""
    content = bytearray(path.read_bytes())
    at %= len(content)
    content[at : at + len(value)] = value
    path.write_bytes(content)
    return path


def entry(path: Path, name: str) -> int:
    """Offset of the directory entry of a member."""
    content = path.read_bytes()
    at = content.find(b"PK\x01\x02")
    while content[at + 46 : at + 46 + len(name)] != name.encode():
        at = content.find(b"PK\x01\x02", at + 1)
        assert at >= 0, name
    return at
