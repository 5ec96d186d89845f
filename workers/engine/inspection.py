"""A first look into an uploaded file, before any job may use it: what it holds, and whether we can work with it.

python -m workers.engine inspect JOBDIR
"""

from __future__ import annotations

from pathlib import Path

from modelpress.spec import order
from workers.engine import data, formats, outbox


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
        outbox.write(jobdir / order.INSPECTION, formats.inspect(path))
    else:
        outbox.write(jobdir / order.INSPECTION, data.inspect(path, jobdir / order.WORK))
    teller.done("done")
