"""A first look into an uploaded file, before any job may use it: what it holds, and whether we can work with it.

python -m workers.engine inspect JOBDIR
"""

from __future__ import annotations

import importlib
from pathlib import Path

from modelpress.spec import order
from modelpress.spec.inspection import ModelInspection
from workers.engine import capabilities, data, formats, outbox
from workers.engine.formats import bundle, inspection

CONVERTER = "workers.engine.formats.torch_export"
"""Loaded by name: torch's exporter takes seconds, which an ONNX file does not wait for."""


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
        outbox.write(jobdir / order.INSPECTION, _inspect_model(jobdir, path, teller))
    else:
        outbox.write(jobdir / order.INSPECTION, data.inspect(path, jobdir / order.WORK))
    teller.done("done")


def _inspect_model(jobdir: Path, path: Path, teller: outbox.Teller) -> ModelInspection:
    """What is in a model; one that is not ONNX is converted, and output/converted.onnx is what jobs will use."""
    found = formats.format_of(path)
    if found == "onnx":
        return _look(jobdir, path, teller)
    if found == "onnx_zip":
        formats.save(bundle.load(path, jobdir / order.WORK), jobdir / order.CONVERTED)
        looked = _look(jobdir, jobdir / order.CONVERTED, teller)
        return looked.model_copy(update={"format": found})
    converter = importlib.import_module(CONVERTER)
    graph = converter.convert(path, jobdir / order.WORK, teller.tell)
    formats.save(graph, jobdir / order.CONVERTED)
    looked = _look(jobdir, jobdir / order.CONVERTED, teller)
    return looked.model_copy(update={"format": found, "notes": converter.notes(graph)})


def _look(jobdir: Path, path: Path, teller: outbox.Teller) -> ModelInspection:
    """What is in an ONNX file, and what steps could do to it."""
    graph = formats.load(path)
    can = capabilities.survey(graph, jobdir / order.WORK, teller.part(0.5, 1.0))
    return inspection.inspect(graph).model_copy(update={"capabilities": can})
