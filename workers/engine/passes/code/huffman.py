"""code.huffman: canonical Huffman codes and the relative index of Deep Compression (Han et al. 2016, arXiv 1510.00149, sections 2, 4).

    [0 0 .5 0 -.5 .5]  ->  gaps 2 1 0, entries 1 0 1 of the table [-.5 .5], each in a code of its own

Differs in: a code's length is limited to 16 bits; the bits of a gap are chosen for each tensor by what comes out; tensors of which no
weight is zero are coded symbol by symbol; floats of many values have their exponents coded, as the paper leaves them raw.
"""

from __future__ import annotations

from modelpress.spec.code import CodeHuffman
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.passes.code import _packing


def apply(graph: Graph, step: CodeHuffman, ctx: Context) -> Graph:
    """Leaves the packed file beside the model. Raises as `_packing.pack`."""
    return _packing.pack(graph, step, ctx, "huffman")


def survey(graph: Graph, ctx: Context) -> None:
    """Lists which tensors get a section of their own."""
    _packing.survey(graph, ctx)
