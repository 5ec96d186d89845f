"""What the client can do with files: upload them, make models and datasets of them, wait for workers to look into these."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar

from modelpress import _calls, _download, _jobs, _upload, errors
from modelpress.resources import Dataset, Model, Upload

Item = TypeVar("Item", Model, Dataset)


class Files(_jobs.Jobs):
    """Everything about uploads, models and datasets; a look into one is a job."""

    def upload(
        self,
        path: str | os.PathLike[str],
        *,
        filename: str = "",
        resume: str | None = None,
        on_progress: _calls.Told = _calls.nobody,
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
        return self._get(f"/v1/uploads/{_calls.id_of(upload)}", Upload)

    def delete_upload(self, upload: str | Upload) -> None:
        """Removes an upload that nothing was made of."""
        self._http.request("DELETE", f"/v1/uploads/{_calls.id_of(upload)}", headers=_upload.TUS)

    def upload_model(
        self,
        path: str | os.PathLike[str],
        *,
        name: str = "",
        architecture: str | None = None,
        on_progress: _calls.Told = _calls.nobody,
        timeout_s: float = _calls.DAY_S,
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
        on_progress: _calls.Told = _calls.nobody,
        timeout_s: float = _calls.DAY_S,
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
        body = {"upload": _calls.id_of(upload), "name": name}
        if architecture is not None:
            body["architecture"] = architecture
        return self._post("/v1/models", Model, body)

    def create_dataset(self, upload: str | Upload, *, name: str = "") -> Dataset:
        """Makes a dataset of a complete upload; it is inspected before jobs may use it."""
        return self._post("/v1/datasets", Dataset, {"upload": _calls.id_of(upload), "name": name})

    def inspected(self, item: Item, *, timeout_s: float = _calls.DAY_S) -> Item:
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

    def inspect_again(self, model: str | Model, *, timeout_s: float = _calls.DAY_S) -> Model:
        """Has a worker look into a model anew and waits for it: a newer service may know more that could be done to it.

        Raises:
            InspectionFailed: the failure says why; a model that was ready is as it was.
            WaitTimeout: no worker looked into it in time.
        """
        again = {"Idempotency-Key": uuid.uuid4().hex}
        response = self._http.request("POST", f"/v1/models/{_calls.id_of(model)}", headers=again)
        job = response.headers["Location"].rsplit("/", 1)[-1]
        ended, now = self.wait(job, timeout_s=timeout_s, check=False), self.model(model)
        if ended.failure is not None:
            raise errors.InspectionFailed(f"{now.filename or now.name} ({now.id})", ended.failure)
        if ended.state != "succeeded":
            raise errors.JobFailed(ended)
        return now

    def model(self, model: str | Model) -> Model:
        """A model as it is now."""
        return self._get(f"/v1/models/{_calls.id_of(model)}", Model)

    def models(self, *, state: str | None = None) -> Iterator[Model]:
        """All models, newest first."""
        return self._list("/v1/models", Model, {"state": state})

    def dataset(self, dataset: str | Dataset) -> Dataset:
        """A dataset as it is now."""
        return self._get(f"/v1/datasets/{_calls.id_of(dataset)}", Dataset)

    def datasets(self, *, state: str | None = None) -> Iterator[Dataset]:
        """All datasets, newest first."""
        return self._list("/v1/datasets", Dataset, {"state": state})

    def download_model(
        self,
        model: str | Model,
        directory: str | os.PathLike[str] = ".",
        *,
        format: Literal["uploaded", "onnx"] = "uploaded",
        on_progress: _calls.Told = _calls.nobody,
    ) -> Path:
        """Puts the file of a model into a directory, as `download` does: the uploaded one, or the ONNX file that jobs use.

        Raises:
            Conflict: the ONNX file is asked for and nobody has looked into the model yet, or it was rejected.
            ChecksumMismatch: what arrived is not what the server says it sent.
        """
        source = _download.of_model(self.model(model), format)
        return _download.fetch(self._http, source, Path(directory), told=on_progress)
