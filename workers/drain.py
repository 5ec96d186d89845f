"""Whether this worker is shutting down: told by its parent process, read by the pool's children in shared memory.

A lock or pipe shared with a child could be left locked or full by its death; eight bytes can't.
"""

from __future__ import annotations

import mmap
import struct
import time

_began = mmap.mmap(-1, 8)  # made before the pool is forked; 0 until the worker is told to stop


def begin() -> None:
    """From now on no job is taken, and the running one has `settings.drain_s` to end."""
    if not is_on():
        _began[:] = struct.pack("d", time.monotonic())


def is_on() -> bool:
    """Whether the worker was told to stop."""
    return _began[:] != bytes(8)


def seconds() -> float:
    """How long ago it was told; 0 where it was not."""
    return time.monotonic() - struct.unpack("d", _began[:])[0] if is_on() else 0.0


def forget() -> None:
    """Undoes `begin`, for a process that goes on."""
    _began[:] = bytes(8)
