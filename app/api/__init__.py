"""HTTP in, HTTP out: one router for each resource, no logic, no SQL."""
