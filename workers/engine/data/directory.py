"""Reads the directory of a zip archive that a stranger made, within limits (APPNOTE 6.3.10, ZIP64 included).

Python's zipfile reads a directory of any size into memory and believes what it says; here every field is checked
before any member is read.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

from workers.engine.data import limits, raw
from workers.engine.errors import BadData

STORED, DEFLATED = 0, 8
LOCAL = struct.Struct("<4s5H3L2H")
"""Header before the bytes of a member."""

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_MAX_COMMENT_BYTES = 0xFFFF
_ENCRYPTED = 1 << 0
_IN_ZIP64 = 0xFFFFFFFF
_BAD_NAME = re.compile(r"[\x00-\x1f\x7f\\]|(^|/)\.\.?(/|$)|^/|//|^[A-Za-z]:/")


@dataclass(frozen=True)
class Member:
    """One entry of the directory, checked against the limits; sizes are what the archive claims."""

    name: str
    method: int
    crc: int
    compressed_bytes: int
    size_bytes: int
    offset: int  # of the local header

    @property
    def is_folder(self) -> bool:
        return self.name.endswith("/")


def read(file: BinaryIO) -> tuple[Member, ...]:
    """Lists the members in the order of the directory.

    Raises:
        BadData: no zip archive, a damaged one, or one that breaks a limit.
    """
    count, size_bytes, offset = _find_directory(file)
    if count > limits.MAX_MEMBERS:
        raise raw.refused(f"it has {count:,} members, more than {limits.MAX_MEMBERS:,}")
    if size_bytes > limits.MAX_DIRECTORY_BYTES:
        raise raw.refused(
            f"its directory has {size_bytes:,} bytes, more than {limits.MAX_DIRECTORY_BYTES:,}"
        )
    members = tuple(_members(raw.read(file, offset, size_bytes), count))
    _check_together(members, offset)
    return members


def _find_directory(file: BinaryIO) -> tuple[int, int, int]:
    """Answers (members, bytes, offset) of the central directory."""
    file_bytes = os.fstat(file.fileno()).st_size
    start = max(0, file_bytes - _END.size - _MAX_COMMENT_BYTES)
    tail = raw.read(file, start, file_bytes - start)
    at = _find_end(tail)
    if at < 0:
        raise _no_archive(file)
    _, disk, first_disk, here, count, size_bytes, offset, _ = _END.unpack_from(tail, at)
    end = start + at
    if disk or first_disk or here != count:
        raise raw.refused("it is one part of several")
    locator = _locator(file, end)
    if locator is not None:
        count, size_bytes, offset, end = _find_directory64(file, locator)
    if offset + size_bytes != end:
        raise raw.refused(
            f"its directory of {size_bytes:,} bytes at {offset:,} does not end where the end record begins, at {end:,}"
        )
    return count, size_bytes, offset


def _find_end(tail: bytes) -> int:
    """Offset in `tail` of the end record, whose comment must reach exactly to the end of the file; -1 if none does."""
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        if at + _END.size <= len(tail):
            comment_bytes = _END.unpack_from(tail, at)[7]
            if at + _END.size + comment_bytes == len(tail):
                return at
        at = tail.rfind(b"PK\x05\x06", 0, at)
    return -1


def _locator(file: BinaryIO, end: int) -> int | None:
    """Offset of the ZIP64 end record, where a locator before the end record at `end` says that there is one.

    Writers add it above 2 GiB already, when the end record would still do.
    """
    if end < _END64_LOCATOR.size:
        return None
    fields = _END64_LOCATOR.unpack(raw.read(file, end - _END64_LOCATOR.size, _END64_LOCATOR.size))
    if fields[0] != b"PK\x06\x07":
        return None
    if fields[3] > 1:
        raise raw.refused("it is one part of several")
    return int(fields[2])


def _find_directory64(file: BinaryIO, at: int) -> tuple[int, int, int, int]:
    """Answers (members, bytes, offset) of the central directory, and where the record that says so begins."""
    fields = _END64.unpack(raw.read(file, at, _END64.size))
    if fields[0] != b"PK\x06\x06" or fields[6] != fields[7]:
        raise raw.refused("its ZIP64 end record is damaged")
    return fields[7], fields[8], fields[9], at


def _members(listing: bytes, count: int) -> Iterator[Member]:
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(listing):
            raise raw.refused("its directory ends within an entry")
        fields = _CENTRAL.unpack_from(listing, at)
        name_at = at + _CENTRAL.size
        extra_at = name_at + fields[10]
        at = extra_at + fields[11] + fields[12]
        if fields[0] != b"PK\x01\x02" or at > len(listing):
            raise raw.refused("its directory is damaged")
        yield _member(fields, listing[name_at:extra_at], listing[extra_at : extra_at + fields[11]])
    if at != len(listing):
        raise raw.refused(f"its directory has {len(listing) - at:,} bytes after the last entry")


def _member(fields: tuple[int, ...], raw_name: bytes, extra: bytes) -> Member:
    flags, method, crc = fields[3], fields[4], fields[7]
    name = raw.decode(raw_name, flags)
    size_bytes, compressed_bytes, offset = _sizes(fields, extra, name)
    member = Member(name, method, crc, compressed_bytes, size_bytes, offset)
    if len(name) > limits.MAX_NAME_CHARS or not name or _BAD_NAME.search(name):
        raise raw.refused(
            f"member name {name[:80]!r} is not allowed: relative, printable, without '..', "
            f"up to {limits.MAX_NAME_CHARS} characters",
            member.name,
        )
    if flags & _ENCRYPTED:
        raise raw.refused(f"member {name!r} is encrypted", member.name)
    if method not in (STORED, DEFLATED):
        raise raw.refused(
            f"member {name!r} is compressed by method {method}; stored and deflated are read",
            member.name,
        )
    if stat.S_IFMT(fields[15] >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise raw.refused(f"member {name!r} is a link or a device", member.name)
    if method == STORED and size_bytes != compressed_bytes:
        raise raw.refused(
            f"member {name!r} is stored, yet claims {size_bytes:,} bytes from {compressed_bytes:,}",
            member.name,
        )
    _check_ratio(f"member {name!r}", size_bytes, compressed_bytes)
    return member


def _sizes(fields: tuple[int, ...], extra: bytes, name: str) -> tuple[int, int, int]:
    """(size, compressed size, offset), each from the ZIP64 field where the 32-bit one is full."""
    values = [fields[9], fields[8], fields[16]]
    wide = [index for index, value in enumerate(values) if value == _IN_ZIP64]
    if wide:
        body = _extra(extra, 1)
        if len(body) < 8 * len(wide):
            raise raw.refused(f"member {name[:80]!r} lacks its ZIP64 sizes")
        for place, index in enumerate(wide):
            values[index] = int.from_bytes(body[8 * place : 8 * place + 8], "little")
    return values[0], values[1], values[2]


def _extra(extra: bytes, wanted: int) -> bytes:
    at = 0
    while at + 4 <= len(extra):
        kind, size_bytes = struct.unpack_from("<2H", extra, at)
        if kind == wanted:
            return extra[at + 4 : at + 4 + size_bytes]
        at += 4 + size_bytes
    return b""


def _check_together(members: tuple[Member, ...], end: int) -> None:
    names: set[str] = set()
    for member in members:
        if member.name in names:
            raise raw.refused(f"member {member.name!r} occurs twice", member.name)
        names.add(member.name)
    total = sum(member.size_bytes for member in members)
    if total > limits.MAX_INFLATED_BYTES:
        raise raw.refused(
            f"its members claim {total:,} bytes together, more than {limits.MAX_INFLATED_BYTES:,}"
        )
    _check_ratio("the archive", total, sum(member.compressed_bytes for member in members))
    _check_overlap(members, end)


def _check_overlap(members: tuple[Member, ...], end: int) -> None:
    """Members that share bytes are how a 46 MB file inflates to 4.5 PB (Fifield, WOOT 2019)."""
    spans = sorted((m.offset, m.offset + LOCAL.size + m.compressed_bytes, m.name) for m in members)
    for (_, stop, name), (start, _, other) in pairwise([*spans, (end, end, "the directory")]):
        if stop > start:
            raise raw.refused(f"member {name!r} overlaps {other!r}")


def _check_ratio(what: str, size_bytes: int, compressed_bytes: int) -> None:
    if size_bytes > max(limits.RATIO_FREE_BYTES, limits.MAX_RATIO * compressed_bytes):
        raise raw.refused(
            f"{what} claims {size_bytes:,} bytes from {compressed_bytes:,}, a ratio above {limits.MAX_RATIO}",
            hint="store the arrays uncompressed: np.savez, not np.savez_compressed",
        )


def _no_archive(file: BinaryIO) -> BadData:
    head = os.pread(file.fileno(), 8, 0)
    if head.startswith(b"PK\x03\x04"):
        return raw.refused("its end is missing: the file is cut short")
    hint = "a dataset is an .npz file, or a zip of image folders"
    if head.startswith(b"\x93NUMPY"):
        hint = "it is a lone .npy: save it by input name, np.savez('data.npz', input=x, labels=y)"
    return BadData(f"the dataset is no zip archive: it begins with {head!r}", hint=hint)
