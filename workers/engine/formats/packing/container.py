"""Puts a packed model together, and takes it apart again before anyone else sees it."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelpress import packed
from modelpress.packed import container
from workers.engine.errors import ExportMismatch, Unsupported
from workers.engine.formats.packing import choice, cuts, plans
from workers.engine.formats.packing.cuts import Cut
from workers.engine.formats.packing.numbers import number
from workers.engine.formats.packing.plans import Coded, Method


@dataclass(frozen=True)
class Packed:
    """What a packed model consists of."""

    size_bytes: int
    header_bytes: int
    """Magic, checksums, sizes, the directory of tensors, and the skeleton."""
    tensors: tuple[Coded, ...]


def nothing(name: str) -> bool:
    """Leaves no tensor as it is."""
    return False


def pack(
    model: Path, target: Path, method: Method, *, leave: Callable[[str], bool] = nothing
) -> Packed:
    """Writes the ONNX file `model` as a packed one, which appears whole or not at all; unpacking it is tried.

    Tensors that `leave` names are stored as they are.

    Raises:
        Unsupported: the model has 2 GiB or more, or too many tensors or too large a skeleton.
        ExportMismatch: what comes out again is not the model.
    """
    content = model.read_bytes()
    found = cuts.find(content)
    sections = [_section(content, cut, None if leave(cut.name) else method) for cut in found]
    skeleton = _skeleton(content, found)
    _check(content, skeleton, found)
    header = _header(content, skeleton, found, [code for code, _ in sections])
    written = header + b"".join(code for code, _ in sections)
    prefix = container.MAGIC + bytes([container.VERSION])
    unfinished = target.with_name(f".{target.name}.unfinished")
    unfinished.write_bytes(prefix + zlib.crc32(written).to_bytes(4, "little") + written)
    _try(unfinished, content)
    os.replace(unfinished, target)
    head_bytes = container.PREFIX_BYTES + len(header)
    return Packed(target.stat().st_size, head_bytes, tuple(coded for _, coded in sections))


def section(content: bytes, plan: plans.Plan, columns: int) -> bytes:
    """A tensor as it is packed."""
    slabs = choice.slabs_of(content, plan.width, columns)
    return number(columns) + plan.head() + b"".join(map(plan.slab, slabs))


def _section(model: bytes, cut: Cut, method: Method | None) -> tuple[bytes, Coded]:
    content = model[cut.start : cut.end]
    plan: plans.Plan = plans.Raw()
    columns = 0
    if method is not None:
        plan, columns = choice.plan(content, cut.type, cut.dims, method)
    code = section(content, plan, columns)
    head = len(number(columns)) + len(plan.head())
    codebook = len(plan.codebook)
    return code, Coded(
        name=cut.name,
        codec=plan.words(),
        elements=8 * len(content) // choice.width_of(cut.type),
        content_bytes=len(content),
        packed_bytes=len(code),
        codebook_bytes=codebook,
        table_bytes=head - codebook,
    )


def _skeleton(content: bytes, found: list[Cut]) -> bytes:
    ends = [0, *(cut.end for cut in found)]
    starts = [*(cut.start for cut in found), len(content)]
    return b"".join(content[a:b] for a, b in zip(ends, starts, strict=True))


def _header(content: bytes, skeleton: bytes, found: list[Cut], codes: list[bytes]) -> bytes:
    deflated = plans.deflate(skeleton)
    sizes = [len(content), len(skeleton), len(deflated), len(found)]
    before = 0
    for cut, code in zip(found, codes, strict=True):
        sizes += [cut.start - before, cut.end - cut.start, len(code)]
        before = cut.end
    return hashlib.sha256(content).digest() + b"".join(map(number, sizes)) + deflated


def _check(content: bytes, skeleton: bytes, found: list[Cut]) -> None:
    """Refuses what no decoder takes."""
    for value, limit, what in (
        (len(content), container.MAX_BYTES, "bytes"),
        (len(skeleton), container.MAX_SKELETON_BYTES, "bytes beside its weights"),
        (len(found), container.MAX_TENSORS, "tensors"),
    ):
        if value > limit:
            raise Unsupported(
                f"the model has {value:,} {what}, a packed model at most {limit:,}",
                hint="leave the step out for this model",
            )


def _try(path: Path, content: bytes) -> None:
    """Unpacks the file here; a process of its own does it again when the job is verified."""
    again = path.with_name(f"{path.name}.onnx")
    try:
        packed.unpack(path, again)
        same = again.read_bytes() == content
    except packed.PackedError as e:
        raise ExportMismatch(f"the packed model can't be unpacked: {e}") from e
    finally:
        again.unlink(missing_ok=True)
    if not same:
        raise ExportMismatch("the packed model gives another file back")
