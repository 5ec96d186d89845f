"""The one IR: ONNX vocabulary, torch tensors."""

from workers.engine.graph.graph import Graph

__all__ = ["Graph"]
