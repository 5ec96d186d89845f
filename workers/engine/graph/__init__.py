"""The one IR: ONNX vocabulary, torch tensors."""

from workers.engine.graph.graph import Graph

from workers.engine.graph import edit, execute, match, shapes, verify  # isort: skip

__all__ = ["Graph", "edit", "execute", "match", "shapes", "verify"]
