"""What must work all the same."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path


def ordinary_work(scene):
    """Threads, mapped files, renames between its folders: raises if the fence is in the way."""
    work, output = Path(scene["jobdir"], "work"), Path(scene["jobdir"], "output")
    assert Path(scene["jobdir"], "input", "model.onnx").read_text()
    results = []
    threads = [threading.Thread(target=results.append, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(8))
    (work / "a" / "b").mkdir(parents=True)
    (work / "a" / "b" / "file").write_bytes(bytes(8192))
    os.replace(work / "a" / "b" / "file", output / "moved")
    with open(output / "moved", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:5] = b"hello"
    with open(output / "moved", "r+b") as file:
        file.truncate(5)
    assert (output / "moved").read_bytes() == b"hello"
    (output / "moved").unlink()
    (work / "a" / "b").rmdir()
    os.kill(os.getpid(), 0)
    assert os.cpu_count()
    assert Path("/proc/self/status").read_text()
    assert Path("/proc/meminfo").read_text()
    Path("/dev/null").write_text("x")
    assert len(os.urandom(8)) == 8
