"""model.pt2, loaded by torch as its user will load it, against what ONNX Runtime makes of model.onnx."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modelpress.spec import order
from modelpress.spec.report import Verification
from workers.engine import probes, verification
from workers.engine.errors import ExportMismatch
from workers.engine.formats import quiet
from workers.engine.measure import session
from workers.engine.probes import Probe


def check(jobdir: Path, threads: int, checked: Verification) -> Verification:
    """Runs every probe through both artifacts; answers the verification with what was found.

    Raises:
        ExportMismatch: torch can't load or run the artifact.
    """
    kept = probes.read(jobdir)
    folder = jobdir / order.ARTIFACTS
    opened = session.open(folder / order.ONNX, threads=threads, raising=ExportMismatch)
    module = _load(folder / order.PT2)
    largest, problems = 0.0, []
    for run in kept.runs:
        wanted = dict(zip(opened.outputs, opened.run(run.inputs), strict=True))
        inputs = [run.inputs[name] for name in opened.inputs]
        found = dict(zip(opened.outputs, _run(module, inputs), strict=True))
        difference, problem = verification.compare(found, Probe(run.inputs, wanted))
        largest = max(largest, difference)
        problems.append(problem)
    if not any(problems) and largest > kept.tolerance:
        problems.append(f"outputs differ by {largest:.3g}, {kept.tolerance:.3g} is allowed")
    message = "; ".join(dict.fromkeys(filter(None, problems)))
    checked = checked.model_copy(update={"pt2_max_abs_difference": largest})
    if not message:
        return checked
    return checked.model_copy(update={"ok": False, "message": f"{order.PT2}: {message}"[:2000]})


def _load(path: Path) -> Any:
    try:
        with quiet.quiet():
            return torch.export.load(path).module()
    except Exception as error:
        raise ExportMismatch(f"torch can't load {path.name}: {quiet.cause(error)}") from error


def _run(module: Any, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    """The outputs in the order of the network's."""
    try:
        with torch.no_grad():
            outputs = module(*(torch.from_numpy(array.copy()) for array in inputs))
    except Exception as error:
        raise ExportMismatch(f"torch can't run {order.PT2}: {quiet.cause(error)}") from error
    return [made.numpy() for made in (outputs if isinstance(outputs, tuple) else (outputs,))]
