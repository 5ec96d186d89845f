"""The contract between user, API, worker and engine: pure pydantic, no input or output."""
