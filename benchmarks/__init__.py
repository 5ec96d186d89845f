"""Measured tables, one file each: `make bench`, or `python -m benchmarks.NAME`."""
