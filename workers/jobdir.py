"""A job directory after a child had its hands on it: measured, read and removed without trusting anything in it.

A child may leave links where files are expected, FIFOs that block, files without end, directories that can't be
listed or are nested without end. Nothing here follows a link, blocks, or recurses.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

MAX_DEPTH = 32  # directories within each other; the engine needs 3
_BLOCK_BYTES = 512  # unit of st_blocks
_CHUNK_BYTES = 1 << 20


class HostileOutput(Exception):
    """What the child left is not what it may leave; the message says what."""


class Usage(NamedTuple):
    """What lies below a directory."""

    size_bytes: int
    files: int

    def __add__(self, other: object) -> Usage:
        assert isinstance(other, Usage)
        return Usage(self.size_bytes + other.size_bytes, self.files + other.files)


def measure(directory: Path) -> Usage:
    """Counts blocks and entries, directories too. Files that vanish meanwhile are not counted.

    Raises:
        HostileOutput: a directory can't be listed, or is nested deeper than MAX_DEPTH.
    """
    size_bytes = files = 0
    pending = [(directory, 0)]
    while pending:
        current, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise HostileOutput(f"directories nested deeper than {MAX_DEPTH}")
        for entry in _entries(current):
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                size_bytes += status.st_blocks * _BLOCK_BYTES
                files += 1
                if stat.S_ISDIR(status.st_mode):
                    pending.append((current / entry.name, depth + 1))
    return Usage(size_bytes, files)


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as e:
        raise HostileOutput(f"directory that can't be listed: {e.strerror}") from e


@contextmanager
def opened(jobdir: Path, relative: str) -> Iterator[int]:
    """Gives a descriptor of a regular file with a single name, reached through real directories only.

    Raises:
        HostileOutput: it is missing or anything else.
    """
    try:
        handle = _descend(jobdir, relative.split("/"))
    except FileNotFoundError as e:
        raise HostileOutput(f"{relative} is missing") from e
    except OSError as e:
        raise HostileOutput(f"{relative} can't be opened: {e.strerror}") from e
    try:
        _require_plain(os.fstat(handle), relative)
        yield handle
    finally:
        os.close(handle)


def _descend(top: Path, parts: list[str]) -> int:
    """Opens one name after the other, so that no directory on the way can be a link."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts:
        try:
            inner = os.open(part, flags, dir_fd=handle)
        finally:
            os.close(handle)
        handle = inner
    return handle


def _require_plain(status: os.stat_result, relative: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise HostileOutput(f"{relative} is no regular file")
    if status.st_nlink != 1:
        raise HostileOutput(f"{relative} has {status.st_nlink} names, a file of a job has 1")


def read(jobdir: Path, relative: str, *, max_bytes: int) -> bytes:
    """Reads a file of at most `max_bytes`.

    Raises:
        HostileOutput: it is larger, missing, or no plain file.
    """
    with opened(jobdir, relative) as handle, open(handle, "rb", closefd=False) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise HostileOutput(f"{relative} is larger than {max_bytes} bytes")
    return content


def digest(jobdir: Path, relative: str, *, max_bytes: int) -> tuple[int, str]:
    """Size in bytes and SHA-256 in hex, of a file of at most `max_bytes`.

    Raises:
        HostileOutput: it is larger, missing, or no plain file.
    """
    size_bytes, sha256 = 0, hashlib.sha256()
    with opened(jobdir, relative) as handle:
        while chunk := os.read(handle, _CHUNK_BYTES):
            size_bytes += len(chunk)
            sha256.update(chunk)
            if size_bytes > max_bytes:
                raise HostileOutput(f"{relative} is larger than {max_bytes} bytes")
    return size_bytes, sha256.hexdigest()


def remove(directory: Path) -> None:
    """Deletes a job directory whatever the child made of it; one that is gone already is no error.

    Directories are unlocked and, where nested deeply, first moved up to the top, so that no path grows too long.

    Raises:
        OSError: something remains.
    """
    if not directory.exists():
        return
    _flatten(directory)
    shutil.rmtree(directory)


def _flatten(top: Path) -> None:
    pending, count = [(top, 0)], 0
    while pending:
        current, depth = pending.pop()
        os.chmod(current, stat.S_IRWXU)
        if depth >= MAX_DEPTH:
            count += 1
            current = current.rename(top / f".deep-{count}-{os.getpid()}")
            depth = 1
        for entry in list(os.scandir(current)):
            if entry.is_dir(follow_symlinks=False):
                pending.append((current / entry.name, depth + 1))
