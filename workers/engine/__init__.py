"""The engine: a pure library from files to files, and the only home of torch."""
