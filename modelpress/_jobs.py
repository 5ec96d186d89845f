"""What the client can do with jobs: submit, follow, and fetch what they made."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modelpress import _calls, _download, _events, _submit, errors
from modelpress.resources import (
    Artifact,
    Attempt,
    Dataset,
    Event,
    Job,
    Model,
    Plan,
    Sensitivity,
)
from modelpress.spec.constraint import Constraint
from modelpress.spec.job import Images, Limits
from modelpress.spec.progress import Progress
from modelpress.spec.recipe import Recipe
from modelpress.spec.report import Report


class Jobs(_calls.Calls):
    """Everything about jobs."""

    def submit(
        self,
        model: str | Model,
        recipe: str | Recipe | Mapping[str, Any],
        *,
        models: Mapping[str, str | Model] | None = None,
        data: str | Dataset | None = None,
        eval_data: str | Dataset | None = None,
        sensitivity: str | Sensitivity | None = None,
        images: Images | None = None,
        formats: Iterable[str] = (),
        constraints: Iterable[Constraint | Mapping[str, Any]] = (),
        limits: Limits | None = None,
        seed: int = 0,
        name: str = "",
        idempotency_key: str | None = None,
    ) -> Job:
        """Asks for a job. Repeated with the same `idempotency_key`, as retries here are, it stays one job.

        Args:
            model: What to compress.
            recipe: A recipe, its JSON, or the name of one that `recipes` lists.
            models: Other models that steps use, by role: 'initial' is the same network before it was trained.
            data: What steps learn from and calibrate on.
            eval_data: What is measured on; without it a part of `data` is kept for that.
            sensitivity: What `sensitivities` lists of this model; steps use it instead of measuring again.
            images: How images become arrays.
            formats: What the result is written as beside ONNX: 'pt2' to run and train it in PyTorch.
            constraints: What the result must satisfy.
            limits: When to give up.
            seed: Seed of every random choice.
            name: A name for people.
            idempotency_key: What makes two requests the same; a new one by default.

        Raises:
            Invalid: the recipe or another field is wrong; `body.problems` lists every defect.
            Conflict: a model or a dataset is not ready, or the key was used for another request.
        """
        body = _submit.body(
            _calls.id_of(model),
            recipe,
            train=_calls.id_or_none(data),
            eval_=_calls.id_or_none(eval_data),
            sensitivity=_calls.id_or_none(sensitivity),
            models=_calls.ids(models),
            images=images,
            formats=formats,
            constraints=constraints,
            limits=limits,
            seed=seed,
            name=name,
        )
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._post("/v1/jobs", Job, body, headers=headers)

    def validate(
        self,
        model: str | Model,
        recipe: str | Recipe | Mapping[str, Any],
        *,
        models: Mapping[str, str | Model] | None = None,
        data: str | Dataset | None = None,
        eval_data: str | Dataset | None = None,
        sensitivity: str | Sensitivity | None = None,
        constraints: Iterable[Constraint | Mapping[str, Any]] = (),
    ) -> Plan:
        """What `submit` would do with this, without doing it.

        Raises:
            Invalid, Conflict: as `submit` does.
        """
        body = _submit.body(
            _calls.id_of(model),
            recipe,
            train=_calls.id_or_none(data),
            eval_=_calls.id_or_none(eval_data),
            sensitivity=_calls.id_or_none(sensitivity),
            models=_calls.ids(models),
            constraints=constraints,
        )
        return self._post("/v1/jobs:validate", Plan, body)

    def job(self, job: str | Job) -> Job:
        """A job as it is now."""
        return self._get(f"/v1/jobs/{_calls.id_of(job)}", Job)

    def jobs(
        self, *, state: str | None = None, model: str | Model | None = None, kind: str | None = None
    ) -> Iterator[Job]:
        """All jobs, newest first."""
        filters = {"state": state, "model": _calls.id_or_none(model), "kind": kind}
        return self._list("/v1/jobs", Job, filters)

    def cancel(self, job: str | Job) -> Job:
        """Asks a job to stop; it has stopped when `wait` says so."""
        return self._post(f"/v1/jobs/{_calls.id_of(job)}:cancel", Job, None)

    def attempts(self, job: str | Job) -> tuple[Attempt, ...]:
        """The tries of a job, with the end of each one's log."""
        return tuple(self._list(f"/v1/jobs/{_calls.id_of(job)}/attempts", Attempt, {}))

    def events(self, job: str | Job, *, after: int = 0) -> Iterator[Event]:
        """What has happened to a job so far, oldest first, after the event with the given id."""
        while items := _events.page(self._http, _calls.id_of(job), after).items:
            yield from items
            after = items[-1].id

    def wait(
        self,
        job: str | Job,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        timeout_s: float = 14 * _calls.DAY_S,
        check: bool = True,
    ) -> Job:
        """Follows a job to its end and answers it as it then is.

        Args:
            job: The job, or its id.
            on_progress: Hears how far the job is, as it happens.
            timeout_s: How long to wait.
            check: Whether a job that did not succeed is an error.

        Raises:
            JobFailed: with `check`: it failed, expired or was cancelled.
            WaitTimeout: it has not ended in time; it goes on.
            Unreachable: the server was away for longer than the client's patience.
        """
        ended = _events.follow(
            self._http,
            _calls.id_of(job),
            on_progress=on_progress,
            until=time.monotonic() + timeout_s,
            poll_s=self.poll_s,
            patience_s=self.patience_s,
        )
        if ended is None:
            raise errors.WaitTimeout(
                f"job {_calls.id_of(job)} has not ended within {timeout_s:g} s; it goes on"
            )
        if check and ended.state != "succeeded":
            raise errors.JobFailed(ended)
        return ended

    def report(self, job: str | Job) -> Report:
        """What a job has measured so far; `complete` once it has succeeded.

        Raises:
            NotFound: not even the uploaded model has been measured.
        """
        return self._get(f"/v1/jobs/{_calls.id_of(job)}/report", Report)

    def sensitivities(self, model: str | Model) -> Iterator[Sensitivity]:
        """What jobs measured of each layer of a model, newest first, without the measurements."""
        return self._list(f"/v1/models/{_calls.id_of(model)}/sensitivities", Sensitivity, {})

    def sensitivity(self, sensitivity: str | Sensitivity) -> Sensitivity:
        """What a job measured of each layer, as `table`."""
        return self._get(f"/v1/sensitivities/{_calls.id_of(sensitivity)}", Sensitivity)

    def delete_sensitivity(self, sensitivity: str | Sensitivity) -> None:
        """Removes what a job measured; the job stays, and its artifacts.

        Raises:
            Conflict: a job that is not over uses it.
        """
        self._http.request("DELETE", f"/v1/sensitivities/{_calls.id_of(sensitivity)}")

    def artifacts(self, job: str | Job) -> tuple[Artifact, ...]:
        """The files a job made."""
        return tuple(self._list(f"/v1/jobs/{_calls.id_of(job)}/artifacts", Artifact, {}))

    def artifact(self, artifact: str | Artifact) -> Artifact:
        """What is known of a file."""
        return self._get(f"/v1/artifacts/{_calls.id_of(artifact)}", Artifact)

    def download(
        self,
        artifact: str | Artifact,
        directory: str | os.PathLike[str] = ".",
        *,
        on_progress: _calls.Told = _calls.nobody,
    ) -> Path:
        """Puts a file into a directory and answers its path; it appears there whole and verified, or not at all.

        Raises:
            ChecksumMismatch: what arrived is not what the server says it sent.
        """
        known = artifact if isinstance(artifact, Artifact) else self.artifact(artifact)
        source = _download.of_artifact(known)
        return _download.fetch(self._http, source, Path(directory), told=on_progress)

    def fetch(self, job: str | Job, directory: str | os.PathLike[str] = ".") -> tuple[Path, ...]:
        """Downloads every file a job made, and its report as report.json."""
        paths = [self.download(artifact, directory) for artifact in self.artifacts(job)]
        text = self.report(job).model_dump_json(by_alias=True, indent=2)
        return (*paths, _download.write(Path(directory) / "report.json", text.encode() + b"\n"))
