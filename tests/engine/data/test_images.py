from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelpress.spec.inspection import TensorInfo
from modelpress.spec.job import Images
from tests.engine.data import zips
from workers.engine import data
from workers.engine.data import limits
from workers.engine.errors import BadData


def image_input(*shape: int | str | None, dtype: str = "float32") -> list[TensorInfo]:
    return [TensorInfo(name="pixels", dtype=dtype, shape=shape)]


RGB = image_input("n", 3, 8, 8)


def opened(path: Path, inputs: list[TensorInfo] = RGB, rule: Images = zips.PLAIN) -> data.Dataset:
    return data.open(path, inputs, rule, path.parent)


def pets(path: Path, top: str = "", **more: bytes) -> Path:
    members = {
        f"{top}dog/2.png": zips.picture(seed=2),
        f"{top}cat/b.jpg": zips.picture(seed=1, format="JPEG"),
        f"{top}cat/a.webp": zips.picture(seed=0, format="WEBP"),
    }
    return zips.zipped(path / "pets.zip", members | more)


@pytest.mark.parametrize("top", ["", "pets/", "home/me/pets/"])
def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path, top: str) -> None:
    dataset = opened(pets(tmp_path, top))
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 0, 1]
    assert dataset.notes == ("labels number the folders by name: 0 cat, 1 dog",)
    assert dataset.batch([0, 1, 2])["pixels"].shape == (3, 3, 8, 8)


def test_pixels_follow_the_stated_rule(tmp_path: Path) -> None:
    dataset = opened(pets(tmp_path), rule=Images(mean=(0.1, 0.2, 0.3), std=(0.5,)))
    pixels = np.asarray(Image.open(io.BytesIO(zips.picture(seed=2))))
    wanted = (pixels / 255 - [0.1, 0.2, 0.3]) / 0.5
    np.testing.assert_allclose(
        dataset.batch([2])["pixels"][0], wanted.transpose(2, 0, 1), atol=1e-6
    )
    assert dataset.preprocessing == (
        "RGB, resized to 8x8 (bilinear, aspect not kept), divided by 255, "
        "minus [0.1, 0.2, 0.3], over [0.5], NCHW float32"
    )


def test_images_are_resized_to_the_models_height_and_width(tmp_path: Path) -> None:
    path = zips.zipped(tmp_path / "a.zip", {"x/1.png": zips.picture((20, 10), seed=4)})
    batch = opened(path, image_input("n", 3, 6, 12)).batch([0])["pixels"]
    original = Image.open(io.BytesIO(zips.picture((20, 10), seed=4)))
    wanted = np.asarray(original.resize((12, 6), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(batch[0], wanted.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        (image_input("n", 1, 8, 8), (1, 1, 8, 8)),
        (image_input("n", 8, 8, 3), (1, 8, 8, 3)),
        (image_input("n", 8, 8, 1), (1, 8, 8, 1)),
        (image_input("n", 8, 8), (1, 8, 8)),
        (image_input("n", 4, 8, 8), (1, 4, 8, 8)),
        (image_input("n", 3, "h", "w"), (1, 3, 8, 8)),
    ],
)
def test_the_layout_is_the_inputs_own(tmp_path: Path, inputs, shape) -> None:
    assert opened(pets(tmp_path), inputs).batch([0])["pixels"].shape == shape


def test_a_uint8_input_gets_the_pixels_as_they_are(tmp_path: Path) -> None:
    dataset = opened(pets(tmp_path), image_input("n", 8, 8, 3, dtype="uint8"))
    pixels = np.asarray(Image.open(io.BytesIO(zips.picture(seed=2))))
    np.testing.assert_array_equal(dataset.batch([2])["pixels"][0], pixels)
    assert "as they are" in dataset.preprocessing


def test_an_open_size_needs_images_of_one_size(tmp_path: Path) -> None:
    path = zips.zipped(
        tmp_path / "a.zip", {"x/1.png": zips.picture((8, 8)), "x/2.png": zips.picture((9, 8))}
    )
    with pytest.raises(BadData, match="2 sizes: 8x8, 9x8"):
        opened(path, image_input("n", 3, None, None))


def test_images_of_one_folder_have_no_labels(tmp_path: Path) -> None:
    path = zips.zipped(tmp_path / "a.zip", {"x/1.png": zips.picture(), "x/2.png": zips.picture()})
    assert opened(path).labels is None


def test_what_operating_systems_add_is_passed_over(tmp_path: Path) -> None:
    litter = {"__MACOSX/cat/._a.png": b"1", "cat/.DS_Store": b"1", "dog/Thumbs.db": b"1"}
    dataset = opened(pets(tmp_path, **litter))
    assert dataset.samples == 3
    assert len(dataset.notes) == 1


def test_other_files_are_left_aside_and_noted(tmp_path: Path) -> None:
    dataset = opened(pets(tmp_path, **{"cat/readme.txt": b"1"}))
    assert dataset.notes[0] == "1 files that are no images are left aside: cat/readme.txt"


@pytest.mark.parametrize(
    ("member", "content", "reason"),
    [
        ("cat/x.bmp", b"BM", "no PNG, JPEG or WebP"),
        ("cat/x.png", b"not an image", "no PNG, JPEG or WebP"),
        ("cat/x.png", zips.picture(format="GIF"), "no PNG, JPEG or WebP"),
        ("cat/x.png", zips.picture()[:60], "refused"),
        ("cat/deep/x.png", zips.picture(), "lies at depth 3"),
        ("x.png", zips.picture(), "lies at depth 1"),
    ],
)
def test_an_image_that_does_not_belong_is_named(tmp_path: Path, member, content, reason) -> None:
    with pytest.raises(BadData, match=reason) as caught:
        opened(pets(tmp_path, **{member: content}))
    assert caught.value.layer == member


def test_deep_pixels_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    raw = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(raw, "PNG")
    path = zips.zipped(tmp_path / "a.zip", {"x/1.png": raw.getvalue()})
    with pytest.raises(BadData, match="more than 8 bits"):
        opened(path)
    with pytest.raises(BadData, match="more than 8 bits"):
        data.inspect(path, tmp_path)


def huge_png(width: int, height: int) -> bytes:
    """A PNG that claims this size and holds nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (8_001, 8_000)])
def test_a_picture_of_absurd_size_is_never_decoded(tmp_path: Path, width: int, height: int) -> None:
    path = zips.zipped(tmp_path / "a.zip", {"x/1.png": huge_png(width, height)})
    with pytest.raises(BadData, match="refused"):
        opened(path)
    with pytest.raises(BadData, match="refused"):
        data.inspect(path, tmp_path)


def test_an_image_file_beyond_the_limit_is_never_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(limits, "MAX_IMAGE_BYTES", 100)
    with pytest.raises(BadData, match="more than 100"):
        opened(pets(tmp_path))


def test_a_rule_for_other_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="mean has 2 values, but the model's input has 3 channels"):
        opened(pets(tmp_path), rule=Images(mean=(0.1, 0.2)))


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (image_input("n", 64), r"has shape \['n', 64\]"),
        (image_input("n", 2, 8, 8), "has shape"),
        (image_input("n", 3, 8, 8, dtype="int64"), "is int64"),
        ([*RGB, *RGB], "2 inputs"),
    ],
)
def test_a_model_that_takes_no_images_is_told(tmp_path: Path, inputs, reason: str) -> None:
    with pytest.raises(BadData, match=reason):
        opened(pets(tmp_path), inputs)
