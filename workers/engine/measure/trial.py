"""How well a network that is not the job's result predicts: controls and tickets, measured as stages are."""

from __future__ import annotations

from modelpress.spec.report import Quality
from workers.engine import formats
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.measure import quality
from workers.engine.measure.quality import Reference

_FILE = "trial.onnx"


def measure(graph: Graph, ctx: Context) -> Quality:
    """Exports a network below `ctx.work` and measures the file on the eval split, in ONNX Runtime.

    Raises:
        ExportMismatch: ONNX Runtime can't run it, or its outputs have other names or shapes than the uploaded model's.
        Diverged: it answers NaN.
    """
    assert ctx.eval is not None, "a job with data has an eval split"
    path = ctx.work / _FILE
    formats.save(graph, path)
    try:
        return quality.measure(path, ctx.eval, _reference(ctx), threads=ctx.threads)
    finally:
        for file in path.parent.glob(f"{_FILE}*"):  # weights above 2 GiB are in a file beside
            file.unlink()


def _reference(ctx: Context) -> Reference:
    """The uploaded model's outputs; predicted anew where nobody measured it, as outside of a job."""
    if ctx.outputs:
        return Reference(ctx.outputs)
    assert ctx.eval is not None
    path, folder = ctx.work / "source.onnx", ctx.work / "source"
    formats.save(ctx.source, path)
    _, reference = quality.baseline(path, ctx.eval, folder, threads=ctx.threads)
    ctx.outputs.update(reference.outputs)
    return reference
