"""The servers that the other tests stand on: they are real, fresh for each test and gone afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import obstore
import psutil
import pytest
import redis
import sqlalchemy
from obstore.store import S3Store

from app import db, settings, tables
from tests import servers


def test_database_has_all_tables_and_nothing_in_them(database_url: str) -> None:
    engine = db.make_engine(database_url)
    with engine.connect() as connection:
        names = set(sqlalchemy.inspect(connection).get_table_names())
        projects = connection.execute(sqlalchemy.select(tables.Project)).all()
    engine.dispose()
    assert names == set(tables.Table.metadata.tables)
    assert projects == []


@pytest.mark.parametrize("_", [1, 2])
def test_what_a_test_writes_is_not_seen_by_the_next(database_url: str, _: int) -> None:
    engine = db.make_engine(database_url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.insert(tables.Project).values(id="p", name="only one"))
    engine.dispose()


def test_empty_database_has_no_table(empty_database_url: str) -> None:
    engine = db.make_engine(empty_database_url)
    with engine.connect() as connection:
        assert sqlalchemy.inspect(connection).get_table_names() == []
    engine.dispose()


def test_redis_answers(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.ping()


def test_s3_keeps_what_it_is_given(s3: servers.S3) -> None:
    store = S3Store(
        s3.bucket,
        endpoint=s3.endpoint,
        access_key_id=s3.access_key_id,
        secret_access_key=s3.secret_access_key,
        region=s3.region,
        disable_bulk_delete=True,  # the gateway's answer to DeleteObjects lacks a field
        client_options={"allow_http": True},
    )
    obstore.put(store, "a/b", b"content")
    assert bytes(obstore.get(store, "a/b").bytes()) == b"content"
    obstore.delete(store, "a/b")


def test_settings_of_a_test_end_with_it(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configure(lease_s=2, allow_unsandboxed=True)
    assert settings.get().lease_s == 2
    assert settings.get().allow_unsandboxed
    assert settings.get().home == tmp_path
    monkeypatch.undo()
    settings.get.cache_clear()
    assert settings.get().lease_s == 60


def test_process_is_ended_with_its_children(tmp_path: Path) -> None:
    script = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    with servers.process([sys.executable, "-c", script], log=tmp_path / "log") as parent:
        servers.until(lambda: parent.text().strip())
        child = psutil.Process(int(parent.text()))
    servers.until(lambda: not _lives(child), 5)
    assert not parent.alive()


def test_servers_of_a_killed_test_run_die_with_it(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import time, pathlib
        from tests import servers
        with servers.process(["sleep", "600"], log=pathlib.Path({str(tmp_path / "log")!r})) as it:
            print(it.pid, flush=True)
            time.sleep(600)
    """)
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=servers.ROOT)
    assert run.stdout is not None
    server = psutil.Process(int(run.stdout.readline()))
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    servers.until(lambda: not _lives(server), 5)


def test_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "raise SystemExit('the port is taken')"]
    with (
        pytest.raises(servers.NotStarted, match=r"status 1.*the port is taken"),
        servers.process(argv, log=tmp_path / "log") as server,
    ):
        servers.wait(server, lambda: False)


def test_environment_of_a_process_has_only_the_settings_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODELPRESS_PORT", "1")
    env = servers.environment(lease_s=2, allow_unsandboxed=1)
    assert env["MODELPRESS_LEASE_S"] == "2"
    assert env["ALLOW_UNSANDBOXED"] == "1"
    assert env["PATH"] == os.environ["PATH"]
    assert "MODELPRESS_PORT" not in env


def test_url_nobody_listens_on_does_not_answer() -> None:
    assert not servers.answers(f"http://127.0.0.1:{servers.free_port()}/")


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
