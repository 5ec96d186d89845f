"""Passes in which a network learns from others."""
