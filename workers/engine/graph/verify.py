"""Is a graph still a graph? Asked after load and after every pass."""

from __future__ import annotations

import onnx_ir as ir

from workers.engine.errors import BadModel, Unsupported
from workers.engine.graph.graph import Graph
from workers.engine.graph.ops import TABLE, Operator, key


def verify(graph: Graph) -> None:
    """Check that every value is made once, before it is used, by an operator we know.

    Raises:
        BadModel: a name is missing or taken twice, a value is used before it is made or has no
            maker, an initializer has no elements, an output is missing.
        Unsupported: operators are not in the table; the message names them all.
    """
    _verify_operators(graph)
    main = graph.model.graph
    for name, value in main.initializers.items():
        if value.const_value is None:
            raise BadModel(f"initializer '{name}' has no elements", layer=name)
    _verify_scope(main, set(), set())


def unknown_operators(graph: ir.Graph) -> list[str]:
    """Operators, in this graph and those inside it, that are not in the table."""
    nodes = ir.traversal.RecursiveGraphIterator(graph)
    return sorted({key(n.domain, n.op_type) for n in nodes} - set(TABLE))


def _verify_operators(graph: Graph) -> None:
    """Refuse unknown operators, and attributes their operators do not know."""
    if unknown := unknown_operators(graph.model.graph):
        raise Unsupported(
            f"unsupported operators: {', '.join(unknown)}",
            hint="export the model with standard ONNX operators",
        )
    for node in ir.traversal.RecursiveGraphIterator(graph.model.graph):
        _verify_signature(node, TABLE[key(node.domain, node.op_type)])


def _verify_signature(node: ir.Node, operator: Operator) -> None:
    label, layer = f"{node.op_type} '{node.name}'", node.name or ""
    if strange := sorted(set(node.attributes) - operator.attributes):
        raise Unsupported(f"{label} has unknown attribute {', '.join(strange)}", layer=layer)
    if missing := sorted(operator.required - set(node.attributes)):
        raise BadModel(f"{label} lacks attribute {', '.join(missing)}", layer=layer)
    if len(node.inputs) not in operator.operands:
        fewest, most = operator.operands[0], operator.operands[-1]
        raise BadModel(
            f"{label} has {len(node.inputs)} operands; it takes {fewest} to {most}", layer=layer
        )


def _verify_scope(graph: ir.Graph, outer: set[str], nodes: set[str]) -> None:
    known = set(outer)
    for value in (*graph.inputs, *graph.initializers.values()):
        if not value.name:
            raise BadModel("an input or initializer has no name")
        known.add(value.name)
    for node in graph:
        _verify_node(node, known, nodes)
    for value in graph.outputs:
        if value.name not in known:
            raise BadModel(f"nothing makes output '{value.name}'", layer=value.name or "")


def _verify_node(node: ir.Node, known: set[str], nodes: set[str]) -> None:
    label = f"{node.op_type} '{node.name}'"
    if not node.name or node.name in nodes:
        raise BadModel(f"{label}: the node's name is missing or taken twice", layer=node.name or "")
    nodes.add(node.name)
    for value in node.inputs:
        if value is not None and value.name and value.name not in known:
            raise BadModel(
                f"{label} uses '{value.name}', which nothing makes before it: a cycle, a wrong order "
                "or a missing node",
                layer=node.name,
            )
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            _verify_scope(attribute.as_graph(), known, nodes)
    for output in node.outputs:
        if output.name and output.name in known:
            raise BadModel(f"{label} makes '{output.name}', which exists already", layer=node.name)
        known.add(output.name or "")
