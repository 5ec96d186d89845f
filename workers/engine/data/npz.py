"""Opens the arrays of an .npz file as memory maps: in place where stored, from scratch space where deflated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from workers.engine.data import archive, directory, limits, npy
from workers.engine.errors import BadData

SUFFIX = ".npy"


def arrays(
    file: BinaryIO, members: Sequence[directory.Member], scratch: Path
) -> dict[str, NDArray[np.generic]]:
    """Maps every array of the archive, by name without '.npy'. Deflated ones are inflated below `scratch`.

    Raises:
        BadData: a member is no plain array, is damaged, or breaks a limit.
    """
    members = [member for member in members if not member.is_folder]
    if len(members) > limits.MAX_ARRAYS:
        raise BadData(
            f"the dataset has {len(members):,} arrays, more than {limits.MAX_ARRAYS}",
            hint="keep one array per model input, samples along its first dimension, and labels",
        )
    for member in members:
        if not member.name.endswith(SUFFIX):
            raise BadData(
                f"member {member.name!r} is no array: an .npz file holds only {SUFFIX} members",
                layer=member.name,
                hint="save the dataset with np.savez",
            )
    return {
        member.name.removesuffix(SUFFIX): _array(file, member, scratch / f"{index}{SUFFIX}")
        for index, member in enumerate(members)
    }


def _array(file: BinaryIO, member: directory.Member, place: Path) -> NDArray[np.generic]:
    if member.method == directory.STORED:
        _check_crc(file, member)
        return _map(file, member, Path(file.name), archive.data_offset(file, member))
    with place.open("wb") as inflated:
        for piece in archive.chunks(file, member):
            inflated.write(piece)
    with place.open("rb") as inflated:
        return _map(inflated, member, place, 0)


def _check_crc(file: BinaryIO, member: directory.Member) -> None:
    for _ in archive.chunks(file, member):
        pass


def _map(file: BinaryIO, member: directory.Member, path: Path, start: int) -> NDArray[np.generic]:
    file.seek(start)
    head = file.read(min(npy.HEAD_BYTES, member.size_bytes))
    header = npy.parse(head, member.name.removesuffix(SUFFIX), member.size_bytes)
    mapped = np.memmap(
        path,
        dtype=header.dtype,
        mode="r",
        offset=start + header.offset,
        shape=header.shape,
        order="F" if header.fortran else "C",
    )
    return mapped.view(np.ndarray)
