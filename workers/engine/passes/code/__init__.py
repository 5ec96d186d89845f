"""Passes that write the finished model in fewer bytes."""
