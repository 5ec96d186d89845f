"""Passes of the family 'rewrite'."""
