"""What a pass is given beside the graph: where it runs, its data, its randomness, and whom it tells."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from modelpress.spec.report import (
    Control,
    Curve,
    KernelLatency,
    SizeParts,
    Skipped,
    Touched,
)
from modelpress.spec.sensitivity import Sensitivity
from workers.engine import data, graph
from workers.engine.errors import Unsupported

Report = Callable[[float, str], None]


def silent(fraction: float, message: str) -> None:
    """Tells nobody."""


@dataclass
class Coverage:
    """What a step did and did not do, as it goes into the report."""

    touched: list[Touched] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    """Artifacts beside the model, which belong to it as this step left it."""
    latency_packed: KernelLatency | None = field(default=None, compare=False)
    """How fast one of these files is that has kernels for packed weights."""
    coded: SizeParts | None = None
    """What the bytes of the packed file among them are for."""
    prepared: graph.Graph | None = field(default=None, compare=False)
    """The network in the form in which the step changed its layers: it computes what it did before; null where that is the form it came in."""
    networks: dict[str, Callable[[], graph.Graph] | str] = field(
        default_factory=dict, compare=False
    )
    """By layer, the network before the step with that layer alone changed, or why there is none; empty where layers are put back one by one."""
    sensitivity: Sensitivity | None = None
    """What the step found out of the network it was given."""


@dataclass(frozen=True)
class Context:
    """Surroundings of one step.

    Raises:
        BadData: train and eval name different classes.
    """

    device: torch.device
    threads: int
    seed: int
    source: graph.Graph  # the uploaded model
    work: Path  # scratch, free to write below
    models: Mapping[str, graph.Graph] = field(
        default_factory=dict
    )  # other models of the job by role, opened when asked for; not to be changed
    train: data.Dataset | None = None  # null where the job has no data
    eval: data.Dataset | None = None
    outputs: dict[str, NDArray[Any]] = field(
        default_factory=dict
    )  # of the uploaded model on the eval split, once it is measured
    sensitivity: Sensitivity | None = (
        None  # of the network as it is before the step, where that is known
    )
    model_sha256: str = ""  # of the uploaded file
    history: tuple[str, ...] = ()  # kinds of the steps that changed the model before this one
    scope: str = ""  # the step, 'steps/1': steps draw different numbers from the same seed
    report: Report = silent  # fraction of the step from 0 to 1, and what is being done
    coverage: Coverage = field(default_factory=Coverage)

    def __post_init__(self) -> None:
        if self.train is not None and self.eval is not None:
            data.check_same_classes(self.train, self.eval)

    def for_step(self, index: int, report: Report) -> Context:
        """The same surroundings for step `index`, with nothing covered yet."""
        return replace(self, scope=f"steps/{index}", report=report, coverage=Coverage())

    def touched(self, layer: str, change: str) -> None:
        """Records what was done to a layer."""
        self.coverage.touched.append(Touched(layer=layer, change=change))

    def skipped(self, layer: str, reason: str) -> None:
        """Records why a layer was left alone."""
        self.coverage.skipped.append(Skipped(layer=layer, reason=reason))

    def note(self, text: str) -> None:
        """Records what a reader of the report should know; the same note once."""
        if text not in self.coverage.notes:
            self.coverage.notes.append(text)

    def seed_of(self, name: str) -> int:
        """A seed of 63 bits for one named purpose in this step."""
        digest = hashlib.sha256(f"{self.seed}/{self.scope}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1

    def generator(self, name: str) -> torch.Generator:
        """Random numbers for one named purpose, on the CPU so that devices agree."""
        return torch.Generator().manual_seed(self.seed_of(name))

    def random(self, name: str) -> np.random.Generator:
        """The same for numpy."""
        return np.random.default_rng(self.seed_of(name))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def prepare_torch(device: Literal["auto", "cpu", "cuda"], threads: int) -> torch.device:
    """Chooses the device and makes torch deterministic, for the whole process; call it once, first.

    `threads` 0 takes the cores there are. On a GPU, an operation without a deterministic form only warns.

    Raises:
        Unsupported: 'cuda' was asked for and there is none.
    """
    torch.set_num_threads(threads or cores())
    chosen = _choose(device)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=chosen.type == "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    return chosen


def device_name(device: torch.device) -> str:
    """'cpu' or the GPU's name, as reports give it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _choose(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    if device == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a driver that is missing or too old is answered below
        available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise Unsupported(
            "the job asks for a GPU, but torch finds none on this worker",
            hint="run it on a worker of the gpu queue, or with device 'auto'",
        )
    return torch.device("cuda", 0) if available else torch.device("cpu")
