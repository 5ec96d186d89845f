"""Holds a job while an attempt runs: renews its lease, writes down what the attempt tells, and hears when to stop.

All writes come from one thread, so a slow database never holds up the watch over the child. When no sign of life
got through for three quarters of a lease, the child is stopped before another worker can get the job; this is
measured on this machine's monotonic clock, and judged by the watching thread, which no database can block.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Literal, Self

import structlog
from sqlalchemy.orm import Session

from app import db, jobs, settings
from app.claims import Beat, Claim
from modelpress.spec.progress import Progress
from modelpress.spec.report import Report

TICK_S = 0.5  # progress is written at most this often
NEWS_S, NEWS_RATIO = 5.0, 0.01  # and is an event this often, or when this much more is done
LOOK_S = 1.0  # how soon a cancelled job is noticed
SELF_FENCE_RATIO = 0.75

Stop = Literal["cancelled", "drained", "fenced"]
log = structlog.get_logger(__name__)


class Keeper:
    """A context in which a claim is kept; `should_stop` says why it can't be, or must not be."""

    def __init__(self, claim: Claim, *, must_drain: Callable[[], bool] = lambda: False) -> None:
        self._claim, self._must_drain = claim, must_drain
        self._values = settings.get()
        self._progress: Progress | None = None
        self._report: Report | None = None
        self._stages_told = 0
        self._news: tuple[Progress, float] | None = None  # the last that was an event, and when
        self._cancelled = self._fenced = False
        self._sign_at = self._look_at = time.monotonic()
        self._writing = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _t: type[BaseException] | None, _e: BaseException | None, _b: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(timeout=self._values.lease_s)

    def tell_progress(self, progress: Progress) -> None:
        """Takes how far the job is; the latest one is written within TICK_S."""
        self._progress = progress

    def tell_report(self, report: Report) -> None:
        """Takes a report with a stage more; it is written as soon as the database answers."""
        self._report = report

    def flush(self) -> None:
        """Writes what was told and is not yet written, if the database answers."""
        self._try(self._write_told)

    def should_stop(self) -> Stop | None:
        """Why the attempt must end now; None while it need not."""
        silent_s = time.monotonic() - self._sign_at
        if self._fenced or silent_s > SELF_FENCE_RATIO * self._values.lease_s:
            self._fenced = True
            return "fenced"
        if self._cancelled:
            return "cancelled"
        return "drained" if self._must_drain() else None

    def _run(self) -> None:
        while not self._done.wait(min(TICK_S, self._values.heartbeat_s)) and not self._fenced:
            self._try(self._write_told)
            now = time.monotonic()
            if now - self._sign_at >= self._values.heartbeat_s:
                self._try(lambda: self._sign(jobs.heartbeat))
            elif now - self._look_at >= LOOK_S:
                self._try(lambda: self._sign(jobs.look, renews=False))

    def _try(self, write: Callable[[], None]) -> None:
        try:
            with self._writing:
                write()
        except Exception as e:  # the database may be away: `should_stop` judges how long it may be
            log.warning("no sign of life got through", error=repr(e).splitlines()[0])

    def _write_told(self) -> None:
        if (report := self._report) is not None:
            known = self._stages_told
            self._sign(partial(jobs.record_report, report=report, known=known))
            self._stages_told = len(report.stages)
            self._report = None if self._report is report else self._report
        if (progress := self._progress) is not None:
            is_news = self._is_news(progress)
            self._sign(partial(jobs.record_progress, progress=progress, is_news=is_news))
            if is_news:
                self._news = progress, time.monotonic()
            self._progress = None if self._progress is progress else self._progress

    def _is_news(self, progress: Progress) -> bool:
        """Whether those who follow the job want to hear it; a job of hours would else tell them 40,000 times."""
        if self._news is None or progress.event != "progress":
            return True
        told, at = self._news
        more = progress.fraction - told.fraction
        late = time.monotonic() - at >= NEWS_S
        return progress.stage != told.stage or more >= NEWS_RATIO or late

    def _sign(self, write: Callable[[Session, Claim], Beat | None], *, renews: bool = True) -> None:
        began = time.monotonic()  # the lease can't be shorter than counted from before the write
        with db.transaction() as session:
            beat = write(session, self._claim)
        self._look_at = began
        if renews:
            self._sign_at = began
        if beat is None:
            self._fenced = True
        elif beat.cancel:
            self._cancelled = True
