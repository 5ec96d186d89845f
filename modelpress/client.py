"""The service from Python: one method for each thing it can do.

Everything raised is a `ModelPressError`; `modelpress.errors` draws the tree.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from modelpress import _connection, _download, _events, _submit, _transport, _upload, errors
from modelpress.resources import (
    Artifact,
    Attempt,
    Dataset,
    Event,
    Identified,
    Job,
    Key,
    Model,
    Page,
    Plan,
    Project,
    StepInfo,
    Upload,
    Version,
)
from modelpress.spec.constraint import Constraint
from modelpress.spec.job import Images, Limits
from modelpress.spec.progress import Progress
from modelpress.spec.recipe import Recipe
from modelpress.spec.report import Report

DAY_S = 86_400.0

Told = Callable[[int, int], None]
M = TypeVar("M", bound=BaseModel)
Item = TypeVar("Item", Model, Dataset)


def _nobody(done_bytes: int, size_bytes: int) -> None:
    """Hears nothing."""


class Client:
    """A connection to a ModelPress server; close it, or use it in a `with` block.

    Without `url` and `api_key` it takes MODELPRESS_URL and MODELPRESS_API_KEY, then the server that
    `modelpress serve` runs on this machine. One thread at a time.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 60,
        retries: int = 4,
        retry_pause_s: float = 0.2,
        poll_s: float = 0.5,
        patience_s: float = 120,
    ) -> None:
        """Opens nothing yet.

        Args:
            url: Address of the server.
            api_key: Key of a project.
            timeout_s: Longest silence of the server within one request.
            retries: How often a request is repeated when that is safe.
            retry_pause_s: Pause before the first repetition; it doubles with each.
            poll_s: Pause between questions while waiting for the server's workers.
            patience_s: How long `wait` bears a server that can't be reached.

        Raises:
            Unreachable: no server is known.
        """
        server = _connection.find(url, api_key)
        self.url, self.poll_s, self.patience_s = server.url, poll_s, patience_s
        self._http = _transport.Transport(
            server, timeout_s=timeout_s, retries=retries, pause_s=retry_pause_s
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def upload(
        self,
        path: str | os.PathLike[str],
        *,
        filename: str = "",
        resume: str | None = None,
        on_progress: Told = _nobody,
    ) -> Upload:
        """Sends a file, going on after broken connections, and compares its SHA-256 with what arrived.

        Args:
            path: The file.
            filename: Its name on the server; empty takes that of the file.
            resume: Id of an unfinished upload of the same file.
            on_progress: Hears how many bytes were sent, and of how many.

        Raises:
            ChecksumMismatch: what arrived is not what was read.
            TooLarge: the file is over the server's limit.
        """
        source = Path(path)
        return _upload.send(
            self._http, source, filename=filename or source.name, resume=resume, told=on_progress
        )

    def create_upload(self, filename: str, size_bytes: int) -> Upload:
        """Announces a file, so that `upload(..., resume=...)` may send it from several processes in turn."""
        return self.upload_status(_upload.create(self._http, filename, size_bytes))

    def upload_status(self, upload: str | Upload) -> Upload:
        """How far an upload is."""
        return self._get(f"/v1/uploads/{_id(upload)}", Upload)

    def delete_upload(self, upload: str | Upload) -> None:
        """Removes an upload that nothing was made of."""
        self._http.request("DELETE", f"/v1/uploads/{_id(upload)}", headers=_upload.TUS)

    def upload_model(
        self,
        path: str | os.PathLike[str],
        *,
        name: str = "",
        architecture: str | None = None,
        on_progress: Told = _nobody,
        timeout_s: float = DAY_S,
    ) -> Model:
        """Uploads a model and waits until a worker has looked into it.

        Args:
            path: The file.
            name: A name for people; empty takes that of the file.
            architecture: For a state_dict in safetensors: what timm calls its network, such as 'resnet18'.
            on_progress: Hears how many bytes were sent, and of how many.
            timeout_s: How long to wait.

        Raises:
            InspectionFailed: the file is no usable model; the failure says why.
            WaitTimeout: no worker looked into it in time.
        """
        upload = self.upload(path, on_progress=on_progress)
        model = self.create_model(upload, name=name, architecture=architecture)
        return self.inspected(model, timeout_s=timeout_s)

    def upload_dataset(
        self,
        path: str | os.PathLike[str],
        *,
        name: str = "",
        on_progress: Told = _nobody,
        timeout_s: float = DAY_S,
    ) -> Dataset:
        """Uploads a dataset and waits until a worker has looked into it.

        Raises:
            InspectionFailed: the file is no usable dataset; the failure says why.
            WaitTimeout: no worker looked into it in time.
        """
        upload = self.upload(path, on_progress=on_progress)
        return self.inspected(self.create_dataset(upload, name=name), timeout_s=timeout_s)

    def create_model(
        self, upload: str | Upload, *, name: str = "", architecture: str | None = None
    ) -> Model:
        """Makes a model of a complete upload; it is inspected before jobs may use it.

        Args:
            upload: The file.
            name: A name for people; empty takes that of the file.
            architecture: For a state_dict in safetensors: what timm calls its network, such as 'resnet18'.
        """
        body = {"upload": _id(upload), "name": name}
        if architecture is not None:
            body["architecture"] = architecture
        return self._post("/v1/models", Model, body)

    def create_dataset(self, upload: str | Upload, *, name: str = "") -> Dataset:
        """Makes a dataset of a complete upload; it is inspected before jobs may use it."""
        return self._post("/v1/datasets", Dataset, {"upload": _id(upload), "name": name})

    def inspected(self, item: Item, *, timeout_s: float = DAY_S) -> Item:
        """Waits until a worker has looked into a model or dataset.

        Raises:
            InspectionFailed: it is not usable; the failure says why.
            WaitTimeout: no worker looked into it in time.
        """
        kind, until, pause_s = type(item), time.monotonic() + timeout_s, 0.1
        path = f"/v1/{kind.__name__.lower()}s/{item.id}"
        while item.state == "inspecting":
            if time.monotonic() > until:
                raise errors.WaitTimeout(
                    f"{item.id} was not inspected within {timeout_s:g} s; is a worker running?"
                )
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, 2 * self.poll_s)
            item = self._get(path, kind)
        if item.failure is not None:
            raise errors.InspectionFailed(f"{item.filename or item.name} ({item.id})", item.failure)
        return item

    def inspect_again(self, model: str | Model, *, timeout_s: float = DAY_S) -> Model:
        """Has a worker look into a model anew and waits for it: a newer service may know more that could be done to it.

        Raises:
            InspectionFailed: the failure says why; a model that was ready is as it was.
            WaitTimeout: no worker looked into it in time.
        """
        again = {"Idempotency-Key": uuid.uuid4().hex}
        response = self._http.request("POST", f"/v1/models/{_id(model)}", headers=again)
        job = response.headers["Location"].rsplit("/", 1)[-1]
        ended, now = self.wait(job, timeout_s=timeout_s, check=False), self.model(model)
        if ended.failure is not None:
            raise errors.InspectionFailed(f"{now.filename or now.name} ({now.id})", ended.failure)
        if ended.state != "succeeded":
            raise errors.JobFailed(ended)
        return now

    def model(self, model: str | Model) -> Model:
        """A model as it is now."""
        return self._get(f"/v1/models/{_id(model)}", Model)

    def models(self, *, state: str | None = None) -> Iterator[Model]:
        """All models, newest first."""
        return self._list("/v1/models", Model, {"state": state})

    def dataset(self, dataset: str | Dataset) -> Dataset:
        """A dataset as it is now."""
        return self._get(f"/v1/datasets/{_id(dataset)}", Dataset)

    def datasets(self, *, state: str | None = None) -> Iterator[Dataset]:
        """All datasets, newest first."""
        return self._list("/v1/datasets", Dataset, {"state": state})

    def submit(
        self,
        model: str | Model,
        recipe: str | Recipe | Mapping[str, Any],
        *,
        models: Mapping[str, str | Model] | None = None,
        data: str | Dataset | None = None,
        eval_data: str | Dataset | None = None,
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
            _id(model),
            recipe,
            train=_id_or_none(data),
            eval_=_id_or_none(eval_data),
            models=_ids(models),
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
        constraints: Iterable[Constraint | Mapping[str, Any]] = (),
    ) -> Plan:
        """What `submit` would do with this, without doing it.

        Raises:
            Invalid, Conflict: as `submit` does.
        """
        body = _submit.body(
            _id(model),
            recipe,
            train=_id_or_none(data),
            eval_=_id_or_none(eval_data),
            models=_ids(models),
            constraints=constraints,
        )
        return self._post("/v1/jobs:validate", Plan, body)

    def job(self, job: str | Job) -> Job:
        """A job as it is now."""
        return self._get(f"/v1/jobs/{_id(job)}", Job)

    def jobs(
        self, *, state: str | None = None, model: str | Model | None = None, kind: str | None = None
    ) -> Iterator[Job]:
        """All jobs, newest first."""
        filters = {"state": state, "model": _id_or_none(model), "kind": kind}
        return self._list("/v1/jobs", Job, filters)

    def cancel(self, job: str | Job) -> Job:
        """Asks a job to stop; it has stopped when `wait` says so."""
        return self._post(f"/v1/jobs/{_id(job)}:cancel", Job, None)

    def attempts(self, job: str | Job) -> tuple[Attempt, ...]:
        """The tries of a job, with the end of each one's log."""
        return tuple(self._list(f"/v1/jobs/{_id(job)}/attempts", Attempt, {}))

    def events(self, job: str | Job, *, after: int = 0) -> Iterator[Event]:
        """What has happened to a job so far, oldest first, after the event with the given id."""
        while items := _events.page(self._http, _id(job), after).items:
            yield from items
            after = items[-1].id

    def wait(
        self,
        job: str | Job,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        timeout_s: float = 14 * DAY_S,
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
            _id(job),
            on_progress=on_progress,
            until=time.monotonic() + timeout_s,
            poll_s=self.poll_s,
            patience_s=self.patience_s,
        )
        if ended is None:
            raise errors.WaitTimeout(
                f"job {_id(job)} has not ended within {timeout_s:g} s; it goes on"
            )
        if check and ended.state != "succeeded":
            raise errors.JobFailed(ended)
        return ended

    def report(self, job: str | Job) -> Report:
        """What a job has measured so far; `complete` once it has succeeded.

        Raises:
            NotFound: not even the uploaded model has been measured.
        """
        return self._get(f"/v1/jobs/{_id(job)}/report", Report)

    def artifacts(self, job: str | Job) -> tuple[Artifact, ...]:
        """The files a job made."""
        return tuple(self._list(f"/v1/jobs/{_id(job)}/artifacts", Artifact, {}))

    def artifact(self, artifact: str | Artifact) -> Artifact:
        """What is known of a file."""
        return self._get(f"/v1/artifacts/{_id(artifact)}", Artifact)

    def download(
        self,
        artifact: str | Artifact,
        directory: str | os.PathLike[str] = ".",
        *,
        on_progress: Told = _nobody,
    ) -> Path:
        """Puts a file into a directory and answers its path; it appears there whole and verified, or not at all.

        Raises:
            ChecksumMismatch: what arrived is not what the server says it sent.
        """
        known = artifact if isinstance(artifact, Artifact) else self.artifact(artifact)
        source = _download.of_artifact(known)
        return _download.fetch(self._http, source, Path(directory), told=on_progress)

    def download_model(
        self,
        model: str | Model,
        directory: str | os.PathLike[str] = ".",
        *,
        format: Literal["uploaded", "onnx"] = "uploaded",
        on_progress: Told = _nobody,
    ) -> Path:
        """Puts the file of a model into a directory, as `download` does: the uploaded one, or the ONNX file that jobs use.

        Raises:
            Conflict: the ONNX file is asked for and nobody has looked into the model yet, or it was rejected.
            ChecksumMismatch: what arrived is not what the server says it sent.
        """
        source = _download.of_model(self.model(model), format)
        return _download.fetch(self._http, source, Path(directory), told=on_progress)

    def fetch(self, job: str | Job, directory: str | os.PathLike[str] = ".") -> tuple[Path, ...]:
        """Downloads every file a job made, and its report as report.json."""
        paths = [self.download(artifact, directory) for artifact in self.artifacts(job)]
        text = self.report(job).model_dump_json(by_alias=True, indent=2)
        return (*paths, _download.write(Path(directory) / "report.json", text.encode() + b"\n"))

    def steps(self) -> tuple[StepInfo, ...]:
        """Every kind of step the server knows, each with its JSON Schema."""
        return tuple(self._list("/v1/steps", StepInfo, {}))

    def step(self, kind: str) -> StepInfo:
        """One kind of step."""
        return self._get(f"/v1/steps/{kind}", StepInfo)

    def recipes(self) -> dict[str, Recipe]:
        """The recipes that have a name."""
        return {recipe.name: recipe for recipe in self._list("/v1/recipes", Recipe, {})}

    def keys(self) -> Iterator[Key]:
        """The API keys of the project, without their secrets."""
        return self._list("/v1/api-keys", Key, {})

    def create_key(
        self, name: str, *, admin: bool = False, expires_at: datetime | None = None
    ) -> Key:
        """Makes an API key; this answer is the only one that holds its secret."""
        body = {"name": name, "admin": admin, "expires_at": expires_at and expires_at.isoformat()}
        return self._post("/v1/api-keys", Key, {k: v for k, v in body.items() if v is not None})

    def revoke_key(self, key: str | Key) -> None:
        """Makes a key useless, at once and for good."""
        self._http.request("DELETE", f"/v1/api-keys/{_id(key)}")

    def project(self) -> Project:
        """The project of this key."""
        return self._get("/v1/project", Project)

    def projects(self) -> Iterator[Project]:
        """All projects; only for admin keys."""
        return self._list("/v1/projects", Project, {})

    def create_project(self, name: str) -> Project:
        """Makes a project; only for admin keys."""
        return self._post("/v1/projects", Project, {"name": name})

    def version(self) -> Version:
        """What the server runs; needs no key."""
        return self._get("/version", Version)

    def _get(self, path: str, kind: type[M]) -> M:
        return _transport.read(self._http.request("GET", path), kind)

    def _post(
        self, path: str, kind: type[M], body: Any, *, headers: Mapping[str, str] | None = None
    ) -> M:
        response = self._http.request("POST", path, json=body, headers=headers)
        return _transport.read(response, kind)

    def _list(self, path: str, kind: type[M], filters: Mapping[str, str | None]) -> Iterator[M]:
        cursor: str | None = None
        while True:
            response = self._http.request("GET", path, params={**filters, "cursor": cursor})
            page = _transport.read(response, Page[kind])  # type: ignore[valid-type]
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return


def _id(thing: str | Identified) -> str:
    """The id of a thing, safe to put into a path."""
    return quote(thing if isinstance(thing, str) else thing.id, safe="")


def _ids(things: Mapping[str, str | Model] | None) -> dict[str, str]:
    return {role: _id(thing) for role, thing in (things or {}).items()}


def _id_or_none(thing: str | Identified | None) -> str | None:
    return None if thing is None else _id(thing)
