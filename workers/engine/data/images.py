"""A zip of image folders: each folder is a class, classes and files in the order of their names."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modelpress.spec.job import Images
from workers.engine.data import archive, directory, layout, limits
from workers.engine.errors import BadData

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp"))

_OTHER_IMAGES = frozenset((".avif", ".bmp", ".gif", ".heic", ".jp2", ".tif", ".tiff"))
_DEEP_MODES = frozenset(("I", "F", "I;16", "I;16L", "I;16B", "I;16N"))
_DECODE_ERRORS = (
    OSError,  # with UnidentifiedImageError
    ValueError,
    TypeError,
    SyntaxError,
    EOFError,
    LookupError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True)
class Folders:
    """The images of an archive, in the order of the dataset."""

    members: tuple[directory.Member, ...]
    labels: NDArray[np.int64] | None  # null where all images lie in one folder
    classes: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ImageColumn:
    """Pixels [N, H, W, C] uint8 on disk, normalised as they are read."""

    pixels: NDArray[np.uint8]
    target: layout.Layout
    mean: NDArray[np.float32]  # [C] or [1], of pixels / 255
    std: NDArray[np.float32]

    @property
    def row_bytes(self) -> int:
        return self.target.dtype.itemsize * (self.pixels.size // len(self.pixels))

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        pixels = self.pixels[rows]
        if self.target.dtype.kind == "f":
            scaled = (pixels.astype(np.float32) / np.float32(255) - self.mean) / self.std
            return self.target.arrange(scaled.astype(self.target.dtype, copy=False))
        return self.target.arrange(pixels)


def is_image(name: str) -> bool:
    """Whether a member is an image, by its suffix."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def folders(members: Sequence[directory.Member]) -> Folders:
    """Finds images and classes: CLASS/IMAGE, or the same below one folder that holds all.

    Raises:
        BadData: no images, images of a format that is not read, or images that lie at different depths.
    """
    files = [member for member in members if not member.is_folder and not _is_litter(member.name)]
    found = sorted((m for m in files if is_image(m.name)), key=lambda m: m.name)
    if not found:
        raise BadData(
            "the dataset holds no images", hint="put PNG, JPEG or WebP files in a folder per class"
        )
    notes = _ignored(files)
    paths = [PurePosixPath(member.name).parts for member in found]
    while len(paths[0]) > 2 and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    depths = {len(path) for path in paths}
    if depths == {1} or (depths == {2} and len({path[0] for path in paths}) == 1):
        return Folders(tuple(found), None, (), (*notes, "all images lie in one folder: no labels"))
    if depths != {2}:
        odd = next(path for path in paths if len(path) != 2)
        raise BadData(
            f"image {'/'.join(odd)!r} lies at depth {len(odd)}; each image lies in the folder of its class",
            layer="/".join(odd),
            hint="zip one folder per class: cat/1.png, cat/2.png, dog/1.png",
        )
    classes = tuple(sorted({path[0] for path in paths}))
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[path[0]] for path in paths], dtype=np.int64)
    return Folders(tuple(found), labels, classes, (*notes, _numbering(classes)))


def column(
    file: BinaryIO,
    members: Sequence[directory.Member],
    target: layout.Layout,
    rule: Images,
    scratch: Path,
) -> ImageColumn:
    """Decodes every image once, resized, into one mapped array below `scratch`.

    Raises:
        BadData: an image that can't be decoded, or a rule that doesn't fit the channels.
    """
    mean, std = _statistics(rule, target.channels)
    height, width = _size(file, members, target)
    shape = (len(members), height, width, target.channels)
    size_bytes = int(np.prod(shape, dtype=np.float64))
    if size_bytes > limits.MAX_INFLATED_BYTES:
        raise BadData(
            f"{len(members):,} images of {width}x{height} need {size_bytes:,} bytes, more than {limits.MAX_INFLATED_BYTES:,}",
            hint="use fewer images",
        )
    pixels = np.memmap(scratch / "pixels", dtype=np.uint8, mode="w+", shape=shape)
    for row, member in enumerate(members):
        pixels[row] = _pixels(file, member, target.mode, (width, height))
    pixels.flush()
    mapped = np.memmap(scratch / "pixels", dtype=np.uint8, mode="r", shape=shape)
    return ImageColumn(mapped.view(np.ndarray), target, mean, std)


def header(file: BinaryIO, member: directory.Member) -> tuple[int, int, str]:
    """(width, height, mode) of an image, whose bytes are read whole and checked against their CRC, but not decoded.

    Raises:
        BadData: no image of a format that is read, or one with too many pixels.
    """
    with _opened(file, member) as image:
        return image.width, image.height, image.mode


def _pixels(
    file: BinaryIO, member: directory.Member, mode: str, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """[H, W, C] uint8."""
    with _opened(file, member) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata, which is not used
        try:
            shown = image.convert(mode)
            if shown.size != size:
                shown = shown.resize(size, Image.Resampling.BILINEAR)
            pixels = np.asarray(shown)
        except _DECODE_ERRORS as e:
            raise _refused(member, f"it can't be decoded: {str(e)[:200]}") from e
    return pixels.reshape(size[1], size[0], -1)


def _opened(file: BinaryIO, member: directory.Member) -> Image.Image:
    if member.size_bytes > limits.MAX_IMAGE_BYTES:
        raise _refused(
            member, f"it has {member.size_bytes:,} bytes, more than {limits.MAX_IMAGE_BYTES:,}"
        )
    raw = io.BytesIO(b"".join(archive.chunks(file, member)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(raw, formats=FORMATS)
    except _DECODE_ERRORS as e:
        raise _refused(member, f"it is no PNG, JPEG or WebP image: {str(e)[:200]}") from e
    if image.width * image.height > limits.MAX_IMAGE_PIXELS:
        raise _refused(
            member,
            f"it has {image.width}x{image.height} pixels, more than {limits.MAX_IMAGE_PIXELS:,}",
        )
    if image.mode in _DEEP_MODES:
        raise _refused(member, f"its pixels are {image.mode}, more than 8 bits a channel")
    return image


def _size(
    file: BinaryIO, members: Sequence[directory.Member], target: layout.Layout
) -> tuple[int, int]:
    """(height, width): the model's, or where it leaves one open that of the images, if they agree."""
    if target.height is not None and target.width is not None:
        return target.height, target.width
    sizes = {header(file, member)[:2] for member in members}
    if len(sizes) > 1:
        some = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:4])
        raise BadData(
            f"the model's input leaves height or width open, and the images have {len(sizes)} sizes: {some}",
            hint="bring all images to one size, or export the model with a fixed height and width",
        )
    width, height = sizes.pop()
    return target.height or height, target.width or width


def _statistics(rule: Images, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    for name, values in (("mean", rule.mean), ("std", rule.std)):
        if len(values) not in (1, channels):
            raise BadData(
                f"data.images.{name} has {len(values)} values, but the model's input has {channels} channels",
                hint=f"give 1 or {channels} values",
            )
    return np.array(rule.mean, np.float32), np.array(rule.std, np.float32)


def _is_litter(name: str) -> bool:
    """What operating systems add to archives."""
    parts = PurePosixPath(name).parts
    return (
        parts[0] == "__MACOSX"
        or parts[-1].startswith(".")
        or parts[-1].lower() in ("thumbs.db", "desktop.ini")
    )


def _ignored(files: Sequence[directory.Member]) -> tuple[str, ...]:
    others = [member for member in files if not is_image(member.name)]
    for member in others:
        if PurePosixPath(member.name).suffix.lower() in _OTHER_IMAGES:
            raise _refused(member, "it is no PNG, JPEG or WebP image")
    if not others:
        return ()
    some = ", ".join(member.name for member in others[:4])
    return (f"{len(others):,} files that are no images are left aside: {some}",)


def _numbering(classes: Sequence[str]) -> str:
    some = ", ".join(f"{index} {name}" for index, name in enumerate(classes[:10]))
    return f"labels number the folders by name: {some}{', ...' if len(classes) > 10 else ''}"


def _refused(member: directory.Member, reason: str) -> BadData:
    return BadData(
        f"image {member.name!r} is refused: {reason}",
        layer=member.name,
        hint="convert it to an 8-bit PNG, JPEG or WebP, or leave it out",
    )
