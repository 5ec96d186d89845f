"""Revisions of the tables, the same on Postgres and SQLite."""
