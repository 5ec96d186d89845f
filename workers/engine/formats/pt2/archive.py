"""The zip around an exported program: its records are found and bounded, and stay where they are."""

from __future__ import annotations

import mmap
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.engine.errors import BadModel, Unsupported

MAX_FILE_BYTES = 2**32
MAX_RECORDS = 20_000
MAX_JSON_BYTES = 2**26

PROGRAM = "models/model.json"
WEIGHTS, CONSTANTS = "data/weights", "data/constants"
CONFIGS = {
    WEIGHTS: f"{WEIGHTS}/model_weights_config.json",
    CONSTANTS: f"{CONSTANTS}/model_constants_config.json",
}
_ALLOWED = re.compile(
    r"models/model\.json|archive_format|archive_version|byteorder|\.data/\w{1,32}|\.format_version"
    r"|\.storage_alignment|extra/[\w.-]{1,64}|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d{1,6}|model_weights_config\.json)"
    r"|data/constants/(tensor_\d{1,6}|model_constants_config\.json)"
)
_PICKLED = re.compile(r"data/(weights|constants)/model\.pt")
_OBJECT = re.compile(r"data/constants/(custom_obj|opaque_obj)_\d+")
_COMPILED = re.compile(r"data/aotinductor/.*")
_EARLY = frozenset({"serialized_exported_program.json", "serialized_state_dict.pt", "version"})

_AGAIN = "save it again with torch.export.save of torch 2.13 or newer, or export the model to ONNX"
_LOCAL_HEADER = struct.Struct("<4s22xHH")


@dataclass(frozen=True)
class Archive:
    """An exported program on disk; `records` are (offset, bytes) in `content`."""

    content: mmap.mmap
    records: Mapping[str, tuple[int, int]]

    def read_json(self, name: str) -> bytes:
        """The bytes of a record of text.

        Raises:
            BadModel: it is missing, or over the limit.
        """
        offset, size = self.find(name)
        if size > MAX_JSON_BYTES:
            raise BadModel(f"{name} has {size:,} bytes; the limit is {MAX_JSON_BYTES:,}")
        return self.content[offset : offset + size]

    def find(self, name: str) -> tuple[int, int]:
        """Where a record is, and how many bytes it has.

        Raises:
            BadModel: it is missing.
        """
        if name not in self.records:
            raise BadModel(f"the .pt2 file lacks {name}; it is cut or damaged", hint=_AGAIN)
        return self.records[name]


def open(path: Path) -> Archive:
    """Finds the records of a .pt2 file.

    Raises:
        BadModel: it is damaged, or breaks a limit.
        Unsupported: it holds what can't be read without running it: pickled weights, objects, compiled code.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise BadModel(f"the file has {size:,} bytes; the limit is {MAX_FILE_BYTES:,}")
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    try:
        with zipfile.ZipFile(path) as opened:
            entries = opened.infolist()
            return Archive(content, _records(content, entries))
    except (zipfile.BadZipFile, struct.error, ValueError, OSError, NotImplementedError) as error:
        raise BadModel(f"the .pt2 file is a damaged zip: {error}", hint=_AGAIN) from error


def _records(content: mmap.mmap, entries: list[zipfile.ZipInfo]) -> dict[str, tuple[int, int]]:
    """Each record by its name below the archive's one top folder."""
    if len(entries) > MAX_RECORDS:
        raise BadModel(f"the .pt2 file has {len(entries):,} records; the limit is {MAX_RECORDS:,}")
    records: dict[str, tuple[int, int]] = {}
    for entry in entries:
        name = entry.filename.partition("/")[2] or entry.filename
        _check_name(name)
        if name in records:
            raise BadModel(f"the .pt2 file has two records named {name}")
        records[name] = _place(content, entry, name)
    return records


def _check_name(name: str) -> None:
    shown = f"{name[:64]!a}"
    if _PICKLED.fullmatch(name) or name in _EARLY:
        raise Unsupported(
            f"the file was saved by an older torch and keeps {shown} as a pickle, which could run code",
            layer=name[:64],
            hint=_AGAIN,
        )
    if _OBJECT.fullmatch(name):
        raise Unsupported(
            f"the model holds an object that is no tensor ({shown}), which only a pickle can store",
            layer=name[:64],
            hint="replace it by tensors or by code before torch.export.export",
        )
    if _COMPILED.fullmatch(name):
        raise Unsupported(
            f"the file holds compiled code ({shown})",
            layer=name[:64],
            hint="save the exported program: torch.export.save(torch.export.export(...), path)",
        )
    if not _ALLOWED.fullmatch(name):
        raise BadModel(f"a .pt2 file has no record {shown}", hint=_AGAIN)


def _place(content: mmap.mmap, entry: zipfile.ZipInfo, name: str) -> tuple[int, int]:
    """Where the bytes of a record begin: behind its own header, which may be longer than the directory's."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise BadModel(f"record {name} is compressed or encrypted; torch stores records plainly")
    magic, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(content, entry.header_offset)
    offset = entry.header_offset + 30 + name_bytes + extra_bytes
    if magic != b"PK\x03\x04" or offset + entry.file_size > len(content):
        raise BadModel(f"record {name} lies outside of the file")
    return offset, entry.file_size
