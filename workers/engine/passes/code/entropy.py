"""code.entropy: symbols at their entropy, by asymmetric numeral systems (Duda 2013, arXiv 1311.2540) as constriction has them.

    [0 0 .5 0 -.5 .5]  ->  symbols 1 1 2 1 0 2 of the table [-.5 0 .5], each in -log2 of its frequency until then

Frequencies adapt, so that no table is stored; contexts (neighbours in the matrix, the density of a column) are used where trying shows
that they save bytes. The format is in docs/packed.md.
"""

from __future__ import annotations

from modelpress.spec.code import CodeEntropy
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.passes.code import _packing


def apply(graph: Graph, step: CodeEntropy, ctx: Context) -> Graph:
    """Leaves the packed file beside the model. Raises as `_packing.pack`."""
    return _packing.pack(graph, step, ctx, "entropy")


def survey(graph: Graph, ctx: Context) -> None:
    """Lists which tensors get a section of their own."""
    _packing.survey(graph, ctx)
