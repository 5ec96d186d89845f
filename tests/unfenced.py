"""A Celery worker that finds neither Landlock nor seccomp: `celery -A tests.unfenced:celery worker`."""

from __future__ import annotations

from tests import acting
from workers.sandbox import Kernel, supervise

supervise.probe = lambda: Kernel(landlock=0, seccomp=False)
celery = acting.celery
