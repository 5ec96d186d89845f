"""`make demo`: a small network through the whole service."""
