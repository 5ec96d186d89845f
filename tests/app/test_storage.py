"""The store, on a directory and on a bucket behind a real S3-speaking server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from app import errors, settings, storage
from app.storage import Store

DATA = bytes(range(256)) * 80_000  # 20 MB: several parts of a multipart upload
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(configure: Callable[..., None], storage_settings: dict[str, object]) -> Store:
    configure(**storage_settings)
    return storage.get()


async def _blocks(*blocks: bytes) -> AsyncIterator[bytes]:
    for block in blocks:
        yield block


async def _read(store: Store, key: str, start: int, end: int) -> bytes:
    return b"".join([block async for block in store.stream(key, start, end)])


def _keys(store: Store, prefix: str) -> list[str]:
    return [key for key, _ in store.list(prefix)]


def _put(store: Store, key: str, data: bytes, path: Path) -> None:
    path.write_bytes(data)
    store.put_file(key, path)


def test_stream_goes_in_and_comes_out(store: Store) -> None:
    blocks = [DATA[at : at + 1_000_000] for at in range(0, len(DATA), 1_000_000)]
    asyncio.run(store.put_stream("t1/a", _blocks(*blocks), size_bytes=len(DATA)))
    asyncio.run(store.settle("t1/a"))

    assert store.size_bytes("t1/a") == len(DATA)
    assert asyncio.run(_read(store, "t1/a", 0, len(DATA))) == DATA
    assert asyncio.run(_read(store, "t1/a", 4_194_300, 4_194_320)) == DATA[4_194_300:4_194_320]


def test_stream_that_breaks_leaves_nothing(store: Store) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield DATA
        raise errors.BadRequest("broke")

    with pytest.raises(errors.BadRequest, match="broke"):
        asyncio.run(store.put_stream("t2/a", broken(), size_bytes=len(DATA)))

    assert _keys(store, "t2/") == []


def test_file_goes_in_and_comes_out(store: Store, tmp_path: Path) -> None:
    _put(store, "t3/a", DATA, tmp_path / "in")

    store.fetch_to_file("t3/a", tmp_path / "out", sha256=SHA256)

    assert (tmp_path / "out").read_bytes() == DATA


def test_fetched_file_replaces_none(store: Store, tmp_path: Path) -> None:
    _put(store, "t4/a", DATA, tmp_path / "in")

    with pytest.raises(FileExistsError):
        store.fetch_to_file("t4/a", tmp_path / "in")

    assert (tmp_path / "in").read_bytes() == DATA


def test_damaged_file_is_not_handed_out(store: Store, tmp_path: Path) -> None:
    _put(store, "t5/a", DATA[:-1] + b"?", tmp_path / "in")

    with pytest.raises(storage.Damaged, match=SHA256):
        store.fetch_to_file("t5/a", tmp_path / "out", sha256=SHA256)

    assert not (tmp_path / "out").exists()


def test_copy_replaces_what_was_there(store: Store, tmp_path: Path) -> None:
    _put(store, "t6/a", b"new", tmp_path / "new")
    _put(store, "t6/b", b"old", tmp_path / "old")

    store.copy("t6/a", "t6/b", size_bytes=3)
    store.delete("t6/a")

    assert asyncio.run(_read(store, "t6/b", 0, 3)) == b"new"
    assert _keys(store, "t6/") == ["t6/b"]


def test_everything_below_a_prefix_is_deleted(store: Store, tmp_path: Path) -> None:
    for key in ("t7/a/1", "t7/a/2", "t7/b/1"):
        _put(store, key, b"x", tmp_path / "x")

    store.delete_below("t7/a/")

    assert _keys(store, "t7/") == ["t7/b/1"]


def test_missing_object_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match="t8/none"):
        store.size_bytes("t8/none")
    with pytest.raises(errors.NotFound, match="t8/none"):
        store.fetch_to_file("t8/none", tmp_path / "out")
    with pytest.raises(errors.NotFound, match="t8/none"):
        asyncio.run(_read(store, "t8/none", 0, 1))
    store.delete("t8/none")
    store.check()


def test_deleted_object_is_deleted_by_the_loop_too(store: Store, tmp_path: Path) -> None:
    _put(store, "t9/a", b"x", tmp_path / "x")

    asyncio.run(store.delete_async("t9/a"))
    asyncio.run(store.delete_async("t9/a"))

    assert _keys(store, "t9/") == []


def test_job_gets_a_link_and_not_a_copy(configure: Callable[..., None], tmp_path: Path) -> None:
    configure()
    _put(storage.get(), "a", DATA, tmp_path / "in")

    storage.get().fetch_to_file("a", tmp_path / "out")

    assert os.path.samefile(tmp_path / "files" / "a", tmp_path / "out")


def test_store_away_is_unavailable(configure: Callable[..., None]) -> None:
    configure(
        storage_url="s3://models",
        s3_endpoint="http://127.0.0.1:9",
        s3_access_key_id="k",
        s3_secret_access_key="s",
    )

    with pytest.raises(errors.Unavailable):
        storage.get().check()


def test_file_larger_than_the_disk_is_refused_early(
    configure: Callable[..., None],
) -> None:
    configure()

    with pytest.raises(errors.StorageFull, match="left"):
        storage.get().require_room(1 << 60)
    storage.get().require_room(1)


@pytest.mark.parametrize("url", ["ftp://x", "s3://", "/path"])
def test_unknown_kind_of_store_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        storage.make_store(settings.Settings(storage_url=url))


def test_removal_gives_up_on_a_store_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sooner than the database gives up on the transaction that holds the lock."""
    assert timedelta(seconds=30) > 2 * storage.BRIEF
    monkeypatch.setattr(storage, "BRIEF", timedelta(milliseconds=200))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        values = settings.Settings(
            storage_url="s3://bucket",
            s3_endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}",
            s3_access_key_id="id",
            s3_secret_access_key="secret",
        )
        with pytest.raises(errors.Unavailable, match="does not answer"):
            storage.make_store(values).delete("blobs/x")


def test_blobs_of_projects_are_apart() -> None:
    assert storage.blob_key("prj_a", SHA256) == f"blobs/prj_a/{SHA256[:2]}/{SHA256}"
