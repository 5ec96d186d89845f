"""Inflates members of a zip archive in chunks that stop at the claimed size.

Python's zipfile inflates whatever a member holds before it compares that with the claim: 1 MB can become 1 GiB first.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO

from workers.engine.data import directory, limits, raw


def data_offset(file: BinaryIO, member: directory.Member) -> int:
    """Offset in the file at which the member's bytes begin.

    Raises:
        BadData: the local header is not there or names another member.
    """
    fields = directory.LOCAL.unpack(raw.read(file, member.offset, directory.LOCAL.size))
    flags, name_bytes, extra_bytes = fields[2], fields[9], fields[10]
    if fields[0] != b"PK\x03\x04":
        raise raw.refused(
            f"member {member.name!r} does not begin where the directory says", member.name
        )
    name = raw.decode(raw.read(file, member.offset + directory.LOCAL.size, name_bytes), flags)
    if name != member.name:
        raise raw.refused(f"member {member.name!r} calls itself {name[:80]!r}", member.name)
    return member.offset + directory.LOCAL.size + int(name_bytes) + int(extra_bytes)


def chunks(file: BinaryIO, member: directory.Member) -> Iterator[bytes]:
    """Yields the member's bytes in pieces of at most `limits.CHUNK_BYTES`; stops at the claimed size.

    Raises:
        BadData: the member holds fewer or more bytes than claimed, other bytes (CRC), or is no DEFLATE stream.
    """
    pieces = _stored(file, member) if member.method == directory.STORED else _inflated(file, member)
    seen, crc = 0, 0
    for piece in pieces:
        seen += len(piece)
        if seen > member.size_bytes:
            raise raw.refused(
                f"member {member.name!r} claims {member.size_bytes:,} bytes but holds more",
                member.name,
            )
        crc = zlib.crc32(piece, crc)
        yield piece
    if seen != member.size_bytes:
        raise raw.refused(
            f"member {member.name!r} claims {member.size_bytes:,} bytes but holds {seen:,}",
            member.name,
        )
    if crc != member.crc:
        raise raw.refused(
            f"member {member.name!r} is damaged: its CRC-32 is {crc:08x}, the archive says {member.crc:08x}",
            member.name,
        )


def _stored(file: BinaryIO, member: directory.Member) -> Iterator[bytes]:
    at = data_offset(file, member)
    left = member.compressed_bytes
    while left:
        piece = raw.read(file, at, min(left, limits.CHUNK_BYTES))
        yield piece
        at, left = at + len(piece), left - len(piece)


def _inflated(file: BinaryIO, member: directory.Member) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for packed in _stored(file, member):
            waiting = packed
            while waiting and not inflater.eof:
                piece = inflater.decompress(waiting, limits.CHUNK_BYTES)
                waiting = inflater.unconsumed_tail
                if piece:
                    yield piece
        while piece := inflater.decompress(inflater.unconsumed_tail, limits.CHUNK_BYTES):
            yield piece
    except zlib.error as e:
        raise raw.refused(f"member {member.name!r} is damaged: {e}", member.name) from e
    if not inflater.eof:
        raise raw.refused(f"member {member.name!r} ends before its data does", member.name)
