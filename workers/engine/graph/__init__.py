"""The one IR: ONNX vocabulary, torch tensors."""

from workers.engine.graph.graph import Graph

from workers.engine.graph import channels, edit, execute, match, shapes, verify  # isort: skip

__all__ = ["Graph", "channels", "edit", "execute", "match", "shapes", "verify"]
