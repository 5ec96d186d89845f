"""A Celery worker whose engine is the stand-in of `tests.actor`: `celery -A tests.acting:celery worker`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests import actor
from workers import tasks

ENGINE = (sys.executable, "-c", Path(actor.__file__).read_text())

tasks.ENGINE = ENGINE
celery = tasks.celery
