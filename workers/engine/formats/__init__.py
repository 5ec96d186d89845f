"""Model files: find out what a file is, load it, save a graph, look into an upload."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from modelpress.spec.inspection import ModelInspection
from workers.engine.formats import inspection, onnx
from workers.engine.formats.sniff import Format, format_of
from workers.engine.graph import Graph

__all__ = ["Format", "format_of", "inspect", "load", "save"]


def load(path: str | PathLike[str]) -> Graph:
    """Read a model file.

    Raises:
        BadModel: it is none, or breaks a limit.
        Unsupported: it has operators or types we do not know; the message names them all.
    """
    return onnx.load(Path(path))


def save(graph: Graph, path: str | PathLike[str]) -> None:
    """Write a graph as an ONNX file; the same graph gives the same bytes."""
    onnx.save(graph, Path(path))


def inspect(path: str | PathLike[str]) -> ModelInspection:
    """What is in a model file.

    Raises:
        BadModel: it is none, or breaks a limit.
        Unsupported: it has operators or types we do not know; the message names them all.
    """
    return inspection.inspect(load(path))
