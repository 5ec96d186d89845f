"""The code that performs steps. The kind of a step is the path of its pass: 'prune.magnitude' -> passes/prune/magnitude.py.

A pass is a module with `apply(graph, step, ctx) -> Graph`. It may change the graph it is given and returns the result; it reports
each layer it touched or skipped to `ctx`, and raises NothingChanged rather than do nothing.
"""

from __future__ import annotations

import importlib

from modelpress.spec.step import Step
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.passes import _exclusions


def apply(graph: Graph, step: Step, ctx: Context) -> Graph:
    """Runs the pass that performs the step, and tells which patterns of `exclude` match nothing.

    Raises:
        EngineError: whatever the pass raises.
    """
    module = importlib.import_module(f"{__name__}.{step.kind}")
    known = _exclusions.names(graph)
    result: Graph = module.apply(graph, step, ctx)
    known.update(touched.layer for touched in ctx.coverage.touched)
    known.update(skipped.layer for skipped in ctx.coverage.skipped)
    _exclusions.tell(step, known, ctx)
    return result
