"""From files on this machine to a job on the server, with bars for those who watch."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import typer

from modelpress import _inputs, _sensitivity, _show
from modelpress.client import Client
from modelpress.resources import Dataset, Job, Model, Upload

MODEL_ID = "mdl_"
DATASET_ID = "dat_"

Item = TypeVar("Item", Model, Dataset)


def job(client: Client, asked: _inputs.Asked) -> Job:
    """Uploads what is not there yet and submits the job."""
    known = _known(asked)
    return client.submit(
        model(client, asked.model, asked.architecture),
        asked.recipe,
        models={
            role: model(client, text, asked.architectures.get(role))
            for role, text in asked.models.items()
        },
        data=dataset(client, asked.data) if asked.data else None,
        eval_data=dataset(client, asked.eval_data) if asked.eval_data else None,
        sensitivity=known,
        images=asked.images,
        formats=asked.formats,
        constraints=asked.constraints,
        seed=asked.seed,
        name=asked.name,
    )


def _known(asked: _inputs.Asked) -> str | None:
    """The id of sensitivities; a server takes none that it did not measure."""
    known = asked.sensitivity
    if known is not None and not _is_id(known, _sensitivity.ID):
        raise typer.BadParameter(
            f"{known!r} is no id of sensitivities on the server; `modelpress sensitivity {asked.model}` lists them for a model's id"
        )
    return known


def model(client: Client, text: str, architecture: str | None = None) -> Model:
    """The model with this id, or one made of this file."""
    if _is_id(text, MODEL_ID):
        if architecture is not None:
            raise typer.BadParameter(
                f"{text} is a model on the server and has its architecture; leave out {architecture!r}"
            )
        return client.model(text)
    path = _inputs.file(text)
    upload = _upload(client, path)
    made = client.create_model(upload, name=path.stem, architecture=architecture)
    return _inspected(client, made)


def dataset(client: Client, text: str) -> Dataset:
    """The dataset with this id, or one made of this file."""
    if _is_id(text, DATASET_ID):
        return client.dataset(text)
    path = _inputs.file(text)
    return _inspected(client, client.create_dataset(_upload(client, path), name=path.stem))


def _is_id(text: str, prefix: str) -> bool:
    return text.startswith(prefix) and not Path(text).exists()


def _upload(client: Client, path: Path) -> Upload:
    with _show.transfer(f"upload {path.name}") as told:
        return client.upload(path, on_progress=told)


def _inspected(client: Client, item: Item) -> Item:
    with _show.err.status(f"inspecting {item.filename or item.name}"):
        return client.inspected(item)
