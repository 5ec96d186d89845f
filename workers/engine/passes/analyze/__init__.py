"""Passes that measure and change nothing."""
