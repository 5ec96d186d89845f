"""Tells of patterns of `exclude` that match nothing: a misspelt name would leave a layer unprotected, and nobody would know."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection

from modelpress.spec.step import Step
from workers.engine.context import Context
from workers.engine.graph import Graph


def names(graph: Graph) -> set[str]:
    """What a pattern may name: weights and nodes."""
    return {*graph.initializers, *(node.name or "" for node in graph.nodes)}


def tell(step: Step, known: Collection[str], ctx: Context) -> None:
    """Notes each pattern that fits none of the known names."""
    for pattern in step.exclude:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            ctx.note(f"exclude: '{pattern}' is the name of nothing that {step.kind} finds here")
