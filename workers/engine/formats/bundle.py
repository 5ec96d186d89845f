"""An ONNX model whose weights are in files of their own, sent as one file: a zip of the model and those files."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from pathlib import Path

from workers.engine.errors import BadModel, Unsupported
from workers.engine.formats import onnx
from workers.engine.graph import Graph

MAX_FILES = 4096
MAX_BYTES = 2**33
"""Of all files in the zip, once unpacked."""

_HINT = "zip the .onnx file and the files with its weights, in one folder, and nothing else"


def load(path: Path, work: Path) -> Graph:
    """The graph of the one model in a zip.

    Args:
        path: The zip.
        work: Directory for scratch; weights stay mapped from there.

    Raises:
        BadModel: the zip is damaged, breaks a limit, or holds not exactly one model and files beside it.
        Unsupported: as for the model alone; or the weights are too many for one file.
    """
    folder = work / "bundle"
    folder.mkdir()
    try:
        with zipfile.ZipFile(path) as opened:
            model = _unpack(opened, folder)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError) as error:
        raise BadModel(f"the zip is damaged: {error}", hint=_HINT) from error
    graph = onnx.load(model)
    size = onnx.weight_bytes(graph)
    if size >= onnx.INLINE_BYTES - onnx.ROOM_BYTES:
        raise Unsupported(f"the weights have {size:,} bytes; uploads of less than 2 GiB are read")
    return graph


def _unpack(opened: zipfile.ZipFile, folder: Path) -> Path:
    """Put all files of a zip into a folder; answers where the model is."""
    entries = [
        e for e in opened.infolist() if not (e.is_dir() or e.filename.startswith("__MACOSX/"))
    ]
    _check(entries)
    for entry in entries:
        target = folder / os.path.basename(entry.filename)
        with opened.open(entry) as source, target.open("xb") as file:
            shutil.copyfileobj(source, file)
    return next(folder.glob("*.onnx"))


def _check(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_FILES:
        raise BadModel(f"the zip has {len(entries):,} files; the limit is {MAX_FILES:,}")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_BYTES:
        raise BadModel(f"the files in the zip have {total:,} bytes; the limit is {MAX_BYTES:,}")
    names = [entry.filename for entry in entries]
    models = [name for name in names if name.endswith(".onnx")]
    if len(models) != 1:
        raise BadModel(f"the zip has {len(models)} .onnx files; it needs one", hint=_HINT)
    folders = {os.path.dirname(name) for name in names}
    if len(folders) > 1 or len(set(names)) < len(names):
        raise BadModel("files in the zip are not in one folder, or have the same name", hint=_HINT)
    if any(entry.flag_bits & 1 for entry in entries):
        raise BadModel("the zip is encrypted", hint=_HINT)
