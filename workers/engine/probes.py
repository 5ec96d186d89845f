"""Inputs with the engine's own answers to them, kept on disk for the process that verifies the artifact.

output/verify/probes.json   which arrays belong together, and how far ONNX Runtime may be from them
output/verify/*.npy         the arrays
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from workers.engine import outbox

FOLDER = "output/verify"
_INDEX = "probes.json"

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Probe:
    """One run of the model: inputs and outputs by name."""

    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True)
class Probes:
    """Runs of different batch sizes, where the model allows them."""

    runs: Sequence[Probe]
    tolerance: float
    """Largest absolute difference allowed in any output."""


class _Files(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: dict[str, str]
    outputs: dict[str, str]


class _Index(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    tolerance: float
    runs: tuple[_Files, ...]


def write(jobdir: Path, probes: Probes) -> None:
    """Keeps the probes; replaces those of before."""
    folder = jobdir / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    runs = tuple(
        _Files(
            inputs=_save(folder, f"{index}-input", run.inputs),
            outputs=_save(folder, f"{index}-output", run.outputs),
        )
        for index, run in enumerate(probes.runs)
    )
    outbox.write(folder / _INDEX, _Index(tolerance=probes.tolerance, runs=runs))


def read(jobdir: Path) -> Probes:
    """The probes that were kept."""
    folder = jobdir / FOLDER
    index = _Index.model_validate_json((folder / _INDEX).read_bytes())
    runs = [Probe(_load(folder, run.inputs), _load(folder, run.outputs)) for run in index.runs]
    return Probes(runs, index.tolerance)


def _save(folder: Path, stem: str, arrays: Arrays) -> dict[str, str]:
    files = {}
    for index, (name, array) in enumerate(arrays.items()):
        files[name] = f"{stem}-{index}.npy"
        np.save(folder / files[name], array, allow_pickle=False)
    return files


def _load(folder: Path, files: Mapping[str, str]) -> dict[str, NDArray[np.generic]]:
    return {name: np.load(folder / file, allow_pickle=False) for name, file in files.items()}
