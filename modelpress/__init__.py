"""ModelPress: make neural networks small and fast, and prove every number."""

__version__ = "0.1.0"
