"""What a child says on its two streams, read without ever holding much of it."""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from collections.abc import Callable
from typing import IO

from workers import text

MAX_LINE_BYTES = 16_384
BURST_BYTES, BYTES_PER_S = 64 << 20, 16 << 10  # an honest engine says some hundred bytes a second
LOG_TAIL_BYTES = 64 << 10
_CHUNK_BYTES = 64 << 10

OnLine = Callable[[str], bool]


class Streams:
    """Standard output is lines, offered to `on_line`; those it does not take, and standard error, are the log.

    Only the end of the log is kept, LOG_TAIL_BYTES. A line longer than MAX_LINE_BYTES is not offered.
    """

    def __init__(self, output: IO[bytes], errors: IO[bytes], on_line: OnLine) -> None:
        self._on_line = on_line
        self._pending = bytearray()  # a line that has not ended yet
        self._too_long = False  # the rest of that line goes to the log
        self._log = bytearray()
        self._started = time.monotonic()
        self.total_bytes = 0
        self._selector = selectors.DefaultSelector()
        for stream, take in ((output, self._take_output), (errors, self._take_log)):
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream.fileno(), selectors.EVENT_READ, take)

    @property
    def flooded(self) -> bool:
        """Whether the child has said more than any honest child does."""
        seconds = time.monotonic() - self._started
        return self.total_bytes > BURST_BYTES + BYTES_PER_S * seconds

    def wake_on(self, handle: int) -> None:
        """Has `pump` return early once this descriptor is readable."""
        self._selector.register(handle, selectors.EVENT_READ, None)

    def forget(self, handle: int) -> None:
        """Undoes `wake_on`."""
        self._selector.unregister(handle)

    def pump(self, timeout_s: float) -> None:
        """Waits for output, no longer than the timeout, and takes at most one chunk of each stream."""
        if not self._selector.get_map():
            time.sleep(timeout_s)
        for key, _ in self._selector.select(timeout_s):
            if key.data is not None:
                self._read(key.fd, key.data)

    def finish(self) -> None:
        """Takes what is left in the pipes of a child that ended; what was not ended by a newline is a line too."""
        for key in list(self._selector.get_map().values()):
            while key.data is not None and not self.flooded and self._read(key.fd, key.data):
                pass
        self._end_line()
        self._selector.close()

    def log_tail(self) -> str:
        """The end of the log as text that a terminal and a database can take."""
        return text.printable(bytes(self._log[-LOG_TAIL_BYTES:]).decode("utf-8", "replace"))

    def _read(self, handle: int, take: Callable[[bytes], None]) -> bool:
        chunk = b""
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(handle, _CHUNK_BYTES)
            if not chunk:
                self._selector.unregister(handle)
        self.total_bytes += len(chunk)
        take(chunk)
        return bool(chunk)

    def _take_output(self, chunk: bytes) -> None:
        first, *others = chunk.split(b"\n")
        self._add(first)
        for part in others:
            self._end_line()
            self._add(part)

    def _add(self, part: bytes) -> None:
        self._pending += part
        if self._too_long or len(self._pending) > MAX_LINE_BYTES:
            self._too_long = True
            self._take_log(bytes(self._pending))
            self._pending.clear()

    def _end_line(self) -> None:
        line, self._pending = bytes(self._pending), bytearray()
        if self._too_long:
            self._too_long = False
            self._take_log(b"\n")
        elif line and not self._on_line(line.decode("utf-8", "replace")):
            self._take_log(line + b"\n")

    def _take_log(self, chunk: bytes) -> None:
        self._log += chunk
        if len(self._log) > 2 * LOG_TAIL_BYTES:
            del self._log[:-LOG_TAIL_BYTES]
