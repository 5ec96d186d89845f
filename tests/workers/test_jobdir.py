from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers import jobdir


def nest(top: Path, depth: int) -> None:
    """Directories in each other, deeper than any path may be long."""
    handle = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=handle)
        inner = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)


def test_blocks_and_entries_are_counted_but_not_what_links_lead_to(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(os.urandom(1 << 20))
    (tmp_path / "a" / "sparse").touch()
    os.truncate(tmp_path / "a" / "sparse", 1 << 40)
    (tmp_path / "link").symlink_to("/usr")
    usage = jobdir.measure(tmp_path)
    assert usage.files == 4
    assert 1 << 20 <= usage.size_bytes < 2 << 20


def test_directory_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    assert jobdir.measure(tmp_path / "gone") == (0, 0)


def test_directories_nested_without_end_are_not_followed(tmp_path: Path) -> None:
    nest(tmp_path, 3000)
    with pytest.raises(jobdir.HostileOutput, match="deeper than 32"):
        jobdir.measure(tmp_path)
    jobdir.remove(tmp_path)
    assert not tmp_path.exists()


def test_locked_directories_are_removed(tmp_path: Path) -> None:
    top = tmp_path / "job"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "b" / "file").write_text("x")
    (top / "a" / "b").chmod(0)
    (top / "a").chmod(0)
    jobdir.remove(top)
    assert not top.exists()


def test_what_links_lead_to_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir(mode=0o750)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "link").symlink_to(tmp_path / "kept")
    jobdir.remove(tmp_path / "job")
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o750


def test_removing_what_is_gone_is_no_error(tmp_path: Path) -> None:
    jobdir.remove(tmp_path / "gone")


def test_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert jobdir.read(tmp_path, "file", max_bytes=5) == b"12345"
    with pytest.raises(jobdir.HostileOutput, match="larger than 4 bytes"):
        jobdir.read(tmp_path, "file", max_bytes=4)


def test_descriptors_are_closed_whatever_happens(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    os.mkfifo(tmp_path / "a" / "fifo")
    before = set(os.listdir("/proc/self/fd"))
    jobdir.read(tmp_path, "a/file", max_bytes=5)
    for name in ("a/fifo", "a/missing", "b/missing", "a", "a/file/x"):
        with pytest.raises(jobdir.HostileOutput):
            jobdir.read(tmp_path, name, max_bytes=5)
    assert set(os.listdir("/proc/self/fd")) == before
