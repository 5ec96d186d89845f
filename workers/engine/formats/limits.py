"""Limits on ONNX files."""

from __future__ import annotations

from pathlib import Path


def check(path: Path) -> None:
    """Hold a file to the limits."""
