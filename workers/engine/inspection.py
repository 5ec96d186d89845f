"""A first look into an uploaded file, before any job may use it: what it holds, and whether we can work with it.

python -m workers.engine inspect JOBDIR
"""

from __future__ import annotations

import importlib
from pathlib import Path

from modelpress.spec import order
from modelpress.spec.inspection import ModelInspection
from workers.engine import capabilities, data, formats, outbox
from workers.engine.errors import BadModel, Unsupported
from workers.engine.formats import bundle, inspection
from workers.engine.graph import Graph

PROGRAMS = "workers.engine.formats.torch_export"
WEIGHTS = "workers.engine.formats.state_dict"
"""Loaded by name: torch's exporter takes seconds, which an ONNX file does not wait for."""

NAME_IT = (
    "say which network of timm they are of: `architecture` in POST /v1/models, or --architecture resnet18; any "
    "other network: save torch.export.export(model.eval(), (example,)) with torch.export.save, or export to ONNX"
)


def inspect(jobdir: Path) -> None:
    """Looks into the file of JOBDIR/order.json and writes output/inspection.json.

    Raises:
        ValueError: the order is not to inspect.
        EngineError: the file can't be used; the message names every unsupported operator.
    """
    asked = outbox.read_order(jobdir)
    if not isinstance(asked, order.InspectOrder):
        raise ValueError(f"the order is to {asked.task}, not to inspect")
    teller = outbox.Teller(stages=1)
    teller.start(0, "inspect", f"looking into the {asked.kind}")
    path = jobdir / asked.file.path
    if asked.kind == "model":
        outbox.write(jobdir / order.INSPECTION, _inspect_model(jobdir, asked, teller))
    else:
        outbox.write(jobdir / order.INSPECTION, data.inspect(path, jobdir / order.WORK))
    teller.done("done")


def _inspect_model(
    jobdir: Path, asked: order.InspectOrder, teller: outbox.Teller
) -> ModelInspection:
    """What is in a model; one that is not ONNX is converted, and output/converted.onnx is what jobs will use."""
    path = jobdir / asked.file.path
    found = formats.format_of(path)
    _require_fitting(found, asked.architecture)
    if found == "onnx":
        return _look(jobdir, path, teller)
    graph, notes = _converted(found, path, asked.architecture, jobdir / order.WORK, teller)
    formats.save(graph, jobdir / order.CONVERTED)
    looked = _look(jobdir, jobdir / order.CONVERTED, teller)
    return looked.model_copy(update={"format": found, "notes": notes})


def _require_fitting(found: formats.Format, architecture: str | None) -> None:
    """An architecture belongs to weights, and to nothing else."""
    if found == "safetensors" and architecture is None:
        raise Unsupported(
            "the file is safetensors: weights without the network that they belong to", hint=NAME_IT
        )
    if found != "safetensors" and architecture is not None:
        raise BadModel(
            f"the architecture '{architecture}' was given with a file that is no safetensors but {found}",
            hint="a whole network needs none: leave it out",
        )


def _converted(
    found: formats.Format, path: Path, architecture: str | None, work: Path, teller: outbox.Teller
) -> tuple[Graph, tuple[str, ...]]:
    """The graph of a file in another format, and what a reader should know of it."""
    if found == "onnx_zip":
        return bundle.load(path, work), ()
    if found == "pt2":
        programs = importlib.import_module(PROGRAMS)
        graph = programs.convert(path, work, teller.tell)
        return graph, programs.notes(graph)
    weights = importlib.import_module(WEIGHTS)
    made: tuple[Graph, tuple[str, ...]] = weights.convert(path, architecture, work, teller.tell)
    return made


def _look(jobdir: Path, path: Path, teller: outbox.Teller) -> ModelInspection:
    """What is in an ONNX file, and what steps could do to it."""
    graph = formats.load(path)
    can = capabilities.survey(graph, jobdir / order.WORK, teller.part(0.5, 1.0))
    return inspection.inspect(graph).model_copy(update={"capabilities": can})
