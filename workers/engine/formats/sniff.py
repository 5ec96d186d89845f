"""What a model file is, told by its first bytes and the names inside it, before anything parses it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from workers.engine.errors import BadModel, Unsupported

Format = Literal["onnx", "onnx_zip", "pt2", "safetensors"]

_EXPORT = (
    "save torch.export.export(model.eval(), (example,)) with torch.export.save, or export to ONNX"
)
_RUNS_CODE = "reading it would run whatever code its author put there"
_MAX_NAMES = 20_000


def format_of(path: Path) -> Format:
    """The format of a model file; what is nothing else may be ONNX, which has no mark of its own.

    Raises:
        BadModel: it is a zip of something else.
        Unsupported: it is a model in a format that is not read; the message says which.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"PK"):
        return _format_of_zip(path)
    if head.startswith(b"\x89HDF"):
        raise Unsupported("the file is HDF5, as Keras writes it", hint="convert it with tf2onnx")
    if head[4:8] == b"TFL3":
        raise Unsupported("the file is a TensorFlow Lite model", hint="convert it with tf2onnx")
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        raise Unsupported(f"the file is a pickle; {_RUNS_CODE}", hint=_EXPORT)
    if head[8:9] == b"{" and not any(head[4:8]):
        return "safetensors"
    return "onnx"


def _format_of_zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as opened:
            names = [entry.filename.partition("/")[2] for entry in opened.infolist()[:_MAX_NAMES]]
            tops = {entry.filename for entry in opened.infolist()[:_MAX_NAMES]}
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise BadModel(f"the file is a damaged zip: {error}") from error
    if "archive_format" in names or "models/model.json" in names:
        return "pt2"
    if "serialized_exported_program.json" in tops:
        return "pt2"
    if any(name.endswith(".onnx") for name in tops):
        return "onnx_zip"
    if "constants.pkl" in names:
        raise Unsupported(f"the file is TorchScript; {_RUNS_CODE}", hint=_EXPORT)
    if "data.pkl" in names:
        raise Unsupported(
            f"the file was written by torch.save and is a pickle; {_RUNS_CODE}", hint=_EXPORT
        )
    raise BadModel(
        "the file is a zip, but not one that torch.export.save writes, nor one of an ONNX model and its weights",
        hint=_EXPORT,
    )
