"""Steps that measure and change nothing."""

from modelpress.spec.analyze.sensitivity import AnalyzeSensitivity

__all__ = ["AnalyzeSensitivity"]
