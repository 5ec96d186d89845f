"""What a pass needs to say what it could do to a graph before there is a job: no recipe and no data are there to help.

A pass that can tell has `survey(graph, ctx)`, which may change the graph: it lists as touched what `apply` could change, as skipped what
it would leave alone, and raises what `apply` would raise, or Undetermined.
"""

from __future__ import annotations

import math

from workers.engine.errors import Unsupported
from workers.engine.graph import Graph, shapes

MAX_ELEMENTS = 1 << 30
"""Of all values of one sample. Channels are followed as strides where they can be, else with 8 bytes for each element: a look must stay cheap."""


class Undetermined(Exception):
    """Only a job can tell; the message says why."""


def input_shapes(graph: Graph) -> shapes.Shapes:
    """Shapes of the inputs for one sample.

    Raises:
        Undetermined: an axis has no fixed size until data gives it one, or the network is too large to be looked through.
        BadModel, Unsupported: shapes do not fit each other, or depend on the data.
    """
    try:
        found = shapes.example_shapes(graph)
    except Unsupported as e:
        raise Undetermined(f"{e.message}: a job with data can tell") from e
    elements = sum(math.prod(shape) for shape in shapes.infer(graph, found).values())
    if elements > MAX_ELEMENTS:
        raise Undetermined(
            f"the values of one sample have {elements:,} elements, a look into the file follows {MAX_ELEMENTS:,}: a job can tell"
        )
    return found
