"""How a job id gets to a worker. The database is the truth: a message is a nudge and may be lost or doubled."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from functools import cache
from pathlib import Path
from queue import Empty
from typing import Any

import structlog
from celery import Celery
from kombu.transport import TRANSPORT_ALIASES, filesystem

from app import settings
from app.settings import Settings

TASK = "workers.tasks.run"
QUEUES = ("ingest", "cpu", "gpu")

_LONGEST_JOB_S = 14 * 86_400
_LEFT_BEHIND_S = 3600
log = structlog.get_logger(__name__)


class Channel(filesystem.Channel):
    """kombu's channel of files, made safe: a message appears and is taken by a rename, so none is read half written.

    kombu's own writes the final file in place (a reader may find it empty and lose it) and names it by
    a clock that restarts at boot, which breaks the order.
    """

    def _put(self, queue: str, message: Any, **_options: Any) -> None:  # type: ignore[override]
        name = f"{time.time_ns():020}_{uuid.uuid4()}.{queue}.msg"
        staged = self._folder("staged") / name
        with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(message, file)
            file.flush()
            os.fsync(file.fileno())
        staged.rename(self._folder("queue") / name)

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        folder, taken = self._folder("queue"), self._folder("taken")
        for name in sorted(os.listdir(folder)):
            if name.partition(".")[2] != f"{queue}.msg":
                continue
            try:
                mine = (folder / name).rename(taken / name)
            except FileNotFoundError:
                continue  # another worker was quicker
            message = json.loads(mine.read_text())
            mine.unlink()
            return message
        raise Empty

    def _folder(self, name: str) -> Path:
        folder = Path(self.transport_options["root"]) / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def data_folder_in(self) -> str:
        """Where kombu counts and purges what waits."""
        return str(self._folder("queue"))

    @property
    def control_folder(self) -> Path:
        """Where kombu keeps which queues an exchange feeds."""
        return self._folder("control")


class Transport(filesystem.Transport):
    """Messages as files in a directory: the embedded broker. Needs atomic renames, so a local disk."""

    Channel = Channel
    polling_interval = 0.1


TRANSPORT_ALIASES["modelpress-files"] = f"{__name__}:Transport"


def celery_settings(values: Settings) -> dict[str, Any]:
    """Celery's configuration: acknowledge early, keep no results, take one message at a time."""
    return {
        **_transport(values),
        "task_default_queue": "cpu",
        "task_create_missing_queues": True,
        "task_acks_late": False,
        "task_reject_on_worker_lost": False,
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_time_limit": _LONGEST_JOB_S
        + 600,  # a backstop: the supervisor of the child owns time
        "task_publish_retry": False,
        "worker_prefetch_multiplier": 1,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
    }


def _transport(values: Settings) -> dict[str, Any]:
    if not values.broker_url:
        return {
            "broker_url": "modelpress-files://localhost",
            "broker_transport_options": {"root": str(values.home / "broker")},
        }
    return {
        "broker_url": values.broker_url,
        "worker_disable_prefetch": True,
        "broker_transport_options": {
            "visibility_timeout": 3600,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 30,
            "retry_on_timeout": True,
            "max_retries": 1,  # of kombu, which else waits seconds in each request while Redis is away
            "interval_start": 0,
        },
    }


def make_celery() -> Celery:
    """The Celery application of this process; the API sends by name with it, the worker adds the task."""
    return _celery(settings.get())


@cache
def _celery(values: Settings) -> Celery:
    celery = Celery("modelpress", set_as_current=False)
    celery.conf.update(celery_settings(values))
    return celery


def send(queue: str, task: str, job_id: str) -> bool:
    """Sends a job id; returns whether the broker took it. Never raises: the sweep sends again."""
    try:
        make_celery().send_task(task, args=[job_id], queue=queue, retry=False, ignore_result=True)
    except Exception as e:
        log.warning("the broker did not take a message", queue=queue, job_id=job_id, error=repr(e))
        return False
    return True


def prune() -> int:
    """Removes messages that killed processes left half written or half taken, and answers how many.

    The sweep sends what was in them; a broker that is a server looks after itself.
    """
    values, removed = settings.get(), 0
    if values.broker_url:
        return 0
    for folder in ("staged", "taken"):
        for path in (values.home / "broker" / folder).glob("*.msg"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _LEFT_BEHIND_S:
                    path.unlink()
                    removed += 1
    return removed


def is_reachable() -> bool:
    """Whether the broker answers now."""
    try:
        with make_celery().connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)
    except Exception as e:
        log.warning("the broker does not answer", error=repr(e))
        return False
    return True
