"""The brokers: files that are never read half written, and a real Valkey."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty

import pytest
import redis
from kombu import Connection

from app import broker, settings
from app.settings import Settings

PRODUCE = """
import sys
from app import broker
for number in range(int(sys.argv[2])):
    assert broker.send("cpu", broker.TASK, f"job_{sys.argv[1]}_{number}")
"""


def _drain(queue: str) -> list[str]:
    """The job ids that wait in a queue, in order, taken out of it."""
    taken = []
    with broker.make_celery().connection_for_read() as connection:
        channel = connection.default_channel
        while (message := channel.basic_get(queue, no_ack=True)) is not None:
            taken.append(json.loads(message.body)[0][0])
    return taken


@pytest.fixture(params=["files", "redis"])
def any_broker(request: pytest.FixtureRequest, configure: Callable[..., None]) -> None:
    """Settings that name the embedded broker, and a real one; nothing waits in either."""
    url = ""
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        with redis.Redis.from_url(url) as client:
            client.flushdb()
    configure(broker_url=url)


@pytest.mark.usefixtures("any_broker")
def test_ids_come_out_in_the_order_they_went_in() -> None:
    for number in range(20):
        assert broker.send("gpu", broker.TASK, f"job_{number}")

    assert _drain("ingest") == []
    assert _drain("gpu") == [f"job_{number}" for number in range(20)]
    assert _drain("gpu") == []


@pytest.mark.usefixtures("any_broker")
def test_message_holds_a_name_and_an_id_and_nothing_else() -> None:
    broker.send("cpu", broker.TASK, "job_1")
    with broker.make_celery().connection_for_read() as connection:
        message = connection.default_channel.basic_get("cpu", no_ack=True)

    assert message.headers["task"] == "workers.tasks.run"
    assert json.loads(message.body)[:2] == [["job_1"], {}]


@pytest.mark.usefixtures("any_broker")
def test_broker_that_answers_is_reachable() -> None:
    assert broker.is_reachable()


def test_broker_away_is_told_and_not_raised(configure: Callable[..., None]) -> None:
    configure(broker_url="redis://127.0.0.1:9/0")

    assert broker.send("cpu", broker.TASK, "job_1") is False
    assert not broker.is_reachable()


def test_messages_of_many_processes_are_taken_once_each(
    configure: Callable[..., None], tmp_path: Path
) -> None:
    configure()
    producers = [
        subprocess.Popen([sys.executable, "-c", PRODUCE, str(number), "150"]) for number in range(2)
    ]
    taken: list[str] = []
    over = threading.Event()
    consumers = [threading.Thread(target=_take, args=(tmp_path, taken, over)) for _ in range(3)]
    for consumer in consumers:
        consumer.start()
    codes = [producer.wait(60) for producer in producers]
    over.set()
    for consumer in consumers:
        consumer.join(60)

    assert codes == [0, 0]
    assert sorted(taken) == sorted(f"job_{p}_{n}" for p in range(2) for n in range(150))


def _take(home: Path, taken: list[str], over: threading.Event) -> None:
    """Takes messages as fast as it can, until the producers are done and nothing waits."""
    options = {"root": str(home / "broker")}
    with Connection("modelpress-files://localhost", transport_options=options) as connection:
        channel = connection.default_channel
        while True:
            done = over.is_set()
            try:
                message = channel._get("cpu")
            except Empty:
                if done:
                    return
            else:
                body = channel.decode_body(message["body"], "base64")
                taken.append(json.loads(body)[0][0])


def test_nothing_is_left_of_taken_messages(configure: Callable[..., None], tmp_path: Path) -> None:
    configure()
    broker.send("cpu", broker.TASK, "job_1")
    _drain("cpu")

    left = [path.name for path in (tmp_path / "broker").rglob("*.msg")]
    assert left == []


def test_celery_acknowledges_early_and_keeps_nothing(configure: Callable[..., None]) -> None:
    configure()
    conf = broker.make_celery().conf

    assert conf.task_acks_late is False
    assert conf.task_ignore_result is True
    assert conf.result_backend is None
    assert conf.worker_prefetch_multiplier == 1
    assert conf.accept_content == ["json"]


def test_connections_to_redis_give_up_soon() -> None:
    options = broker.celery_settings(Settings(broker_url="redis://h"))["broker_transport_options"]

    assert options["socket_connect_timeout"] <= 5
    assert options["visibility_timeout"] >= 3600
    assert settings.get() is settings.get()
