from __future__ import annotations

import io
import stat
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from tests.engine.data import zips
from workers.engine.data import archive, directory, limits
from workers.engine.errors import BadData


def read_all(path: Path) -> dict[str, bytes]:
    with path.open("rb") as file:
        return {
            member.name: b"".join(archive.chunks(file, member)) for member in directory.read(file)
        }


@pytest.mark.parametrize("deflate", [False, True])
def test_members_come_back_as_they_were_put_in(tmp_path: Path, deflate: bool) -> None:
    members = {"a.npy": b"x" * 3_000_000, "b/c.txt": b"", "d/": b"", "ü.npy": bytes(range(256))}
    assert read_all(zips.zipped(tmp_path / "a.zip", members, deflate=deflate)) == members


def test_a_member_read_from_a_stream_without_sizes_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with path.open("wb") as raw:
        raw.seekable = lambda: False  # makes zipfile write data descriptors
        with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as made, made.open("a", "w") as member:
            member.write(b"hello" * 1000)
    assert read_all(path) == {"a": b"hello" * 1000}


def test_zip64_sizes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as made, made.open("a", "w", force_zip64=True) as member:
        member.write(b"wide")
    assert read_all(path) == {"a": b"wide"}


def test_a_zip64_end_record_is_read_where_the_plain_one_would_do(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)  # as if the file were above 2 GiB
    assert read_all(zips.zipped(tmp_path / "a.zip", {"a": b"1" * 20})) == {"a": b"1" * 20}
    assert b"PK\x06\x06" in (tmp_path / "a.zip").read_bytes()


def test_more_members_than_a_plain_end_record_counts_are_read(tmp_path: Path) -> None:
    members = {str(number): b"" for number in range(0x10001)}
    with zips.zipped(tmp_path / "a.zip", members).open("rb") as file:
        assert len(directory.read(file)) == 0x10001


def test_a_comment_that_looks_like_an_end_record_is_not_one(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a", b"1")
        made.comment = b"PK\x05\x06" + bytes(30)
    assert read_all(path) == {"a": b"1"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no zip archive"),
        (b"MZ" + bytes(100), "no zip archive"),
        (b"\x93NUMPY" + bytes(100), "no zip archive"),
        (b"PK\x03\x04" + bytes(100), "cut short"),
        (b"PK\x05\x06" + b"\xff" * 16 + b"\0\0", "several"),
    ],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    with pytest.raises(BadData, match=reason):
        read_all(path)


def test_a_lone_npy_is_told_how_to_become_a_dataset(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY" + bytes(100))
    with pytest.raises(BadData) as caught:
        read_all(path)
    assert "np.savez" in caught.value.hint


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = zips.digits(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadData, match="cut short"):
        read_all(path)


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../b", "/etc/passwd", "a\\b", "C:/a", "a//b", "./a", "a\nb", "..", "x" * 261],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    path = zips.zipped(tmp_path / "a.zip", {name: b"1"})
    with pytest.raises(BadData, match="not allowed"):
        read_all(path)


@pytest.mark.parametrize("name", ["input:0.npy", "a/b.npy", "..a", "a..b", "x.1.npy"])
def test_names_of_tensors_are_allowed(tmp_path: Path, name: str) -> None:
    assert read_all(zips.zipped(tmp_path / "a.zip", {name: b"1"})) == {name: b"1"}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("a")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr(info, b"/etc/passwd")
    with pytest.raises(BadData, match="link or a device"):
        read_all(tmp_path / "a.zip")


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = zips.zipped(tmp_path / "a.zip", {"a": b"1"})
    zips.patched(path, zips.entry(path, "a") + 8, b"\x01")
    with pytest.raises(BadData, match="encrypted"):
        read_all(path)


def test_other_compression_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as made:
        made.writestr("a", b"1" * 1000)
    with pytest.raises(BadData, match="method 14"):
        read_all(tmp_path / "a.zip")


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            made.writestr("a", b"2")
    with pytest.raises(BadData, match="twice"):
        read_all(tmp_path / "a.zip")


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    path = zips.zipped(tmp_path / "a.zip", {"a": bytes(32 << 20)}, deflate=True)
    with pytest.raises(BadData, match="ratio above 100"):
        read_all(path)


def test_many_small_bombs_are_refused_together(tmp_path: Path) -> None:
    members = {str(number): bytes(8 << 20) for number in range(4)}
    path = zips.zipped(tmp_path / "a.zip", members, deflate=True)
    with pytest.raises(BadData, match="ratio above 100"):
        read_all(path)


def test_a_lie_about_the_size_stops_at_the_claim(tmp_path: Path) -> None:
    path = zips.zipped(tmp_path / "a.zip", {"a": bytes(48 << 20)}, deflate=True)
    zips.patched(path, zips.entry(path, "a") + 24, struct.pack("<L", 10))
    tracemalloc.start()
    try:
        with pytest.raises(BadData, match="claims 10 bytes but holds more"):
            read_all(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * limits.CHUNK_BYTES


def test_a_member_with_fewer_bytes_than_claimed_is_refused(tmp_path: Path) -> None:
    path = zips.zipped(tmp_path / "a.zip", {"a": b"1" * 1000}, deflate=True)
    zips.patched(path, zips.entry(path, "a") + 24, struct.pack("<L", 1001))
    with pytest.raises(BadData, match="claims 1,001 bytes but holds 1,000"):
        read_all(path)


def test_a_claim_beyond_the_total_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(limits, "MAX_INFLATED_BYTES", 1999)
    path = zips.zipped(tmp_path / "a.zip", {"a": bytes(1000), "b": bytes(1000)})
    with pytest.raises(BadData, match="2,000 bytes together, more than 1,999"):
        read_all(path)


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(limits, "MAX_MEMBERS", 2)
    path = zips.zipped(tmp_path / "a.zip", {"a": b"", "b": b"", "c": b""})
    with pytest.raises(BadData, match="3 members, more than 2"):
        read_all(path)


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = zips.zipped(tmp_path / "a.zip", {"a": b"hello"})
    zips.patched(path, path.read_bytes().find(b"hello"), b"J")
    with pytest.raises(BadData, match="CRC-32"):
        read_all(path)


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = zips.zipped(tmp_path / "a.zip", {"a": b"1" * 100, "b": b"1" * 100})
    zips.patched(path, zips.entry(path, "b") + 42, struct.pack("<L", 0))
    with pytest.raises(BadData, match="overlaps"):
        read_all(path)


def test_a_header_that_names_another_member_is_refused(tmp_path: Path) -> None:
    path = zips.zipped(tmp_path / "a.zip", {"a": b"1"})
    zips.patched(path, 30, b"b")
    with pytest.raises(BadData, match="calls itself 'b'"):
        read_all(path)


def test_bytes_between_directory_and_end_are_refused(tmp_path: Path) -> None:
    path = zips.zipped(tmp_path / "a.zip", {"a": b"1"})
    content = path.read_bytes()
    path.write_bytes(content[:-22] + b"hidden" + content[-22:])
    with pytest.raises(BadData, match="does not end where"):
        read_all(path)


def test_only_a_chunk_of_a_large_member_is_in_memory(tmp_path: Path) -> None:
    content = io.BytesIO()
    content.write(b"ab" * (32 << 20))
    path = zips.zipped(tmp_path / "a.zip", {"a": content.getvalue()})
    content.close()
    with path.open("rb") as file:
        (member,) = directory.read(file)
        tracemalloc.start()
        try:
            seen = sum(len(chunk) for chunk in archive.chunks(file, member))
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert seen == 64 << 20
    assert peak_bytes < 4 * limits.CHUNK_BYTES
