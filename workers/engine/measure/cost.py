"""How much a model computes."""

from __future__ import annotations

from collections.abc import Mapping

from modelpress.spec.report import Cost
from workers.engine import graph
from workers.engine.graph import shapes


def measure(of: graph.Graph, input_shapes: Mapping[str, tuple[int, ...]]) -> Cost:
    """Dense multiply-accumulates of one sample, whatever batch the shapes hold as their first dimension.

    Raises:
        BadModel: the shapes do not fit the model.
    """
    by_operator = shapes.macs_by_operator(of, input_shapes)
    batch = max((shape[0] for shape in input_shapes.values() if shape), default=1)
    per_sample = {kind: count // batch for kind, count in sorted(by_operator.items()) if count}
    return Cost(macs=sum(per_sample.values()), macs_by_operator=per_sample)
