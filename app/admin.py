"""What an administrator does at the machine.

python -m app.admin create-key --project NAME [--admin]
python -m app.admin ensure-embedded
python -m app.admin orphans [--remove]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from app import accounts, blobs, db, errors, settings, storage

EMBEDDED_PROJECT = "default"


def create_key(session: Session, project: str, name: str, *, admin: bool) -> str:
    """Makes a key, and the project where there is none of that name; answers the key's text."""
    owner = accounts.find_project(session, project) or accounts.create_project(session, project)
    _, key = accounts.create_key(session, owner.id, name, admin=admin)
    return key


def ensure_embedded(session: Session, path: Path, url: str) -> None:
    """Leaves the address and a key of the embedded service where the CLI on this machine finds them.

    A key that still counts is kept.
    """
    key = _key_in(path)
    if key is None or not _counts(session, key):
        key = create_key(session, EMBEDDED_PROJECT, "embedded", admin=True)
    _write_private(path, json.dumps({"url": url, "key": key}) + "\n")


def orphans(*, remove: bool) -> Iterator[str]:
    """A line for each stored file that no row names, and one for all; with `remove` they go at once, those that were noted too."""
    if remove:
        blobs.mark()
    count = size_bytes = 0
    for blob in list(blobs.unnamed()):
        weighs = storage.get().size_bytes(blob.key)
        if remove and not blobs.remove_one(blob):
            continue
        count, size_bytes = count + 1, size_bytes + weighs
        yield f"{blob.key} {weighs}"
    yield f"{count} files, {size_bytes} bytes{' removed' if remove else ''}"


def _key_in(path: Path) -> str | None:
    try:
        found = json.loads(path.read_text())["key"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _counts(session: Session, key: str) -> bool:
    try:
        accounts.authenticate(session, key)
    except errors.Unauthorized:
        return False
    return True


def _write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    staged = path.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    staged.replace(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m app.admin", description="What an administrator does at the machine."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create-key", help="make a key and print it, once")
    create.add_argument("--project", required=True, help="name of the project; made if missing")
    create.add_argument("--name", default="made by app.admin", help="a name for people")
    create.add_argument("--admin", action="store_true", help="may make projects, and any keys")
    commands.add_parser("ensure-embedded", help="leave a key for the CLI on this machine")
    looked = commands.add_parser("orphans", help="list stored files that nothing names")
    looked.add_argument("--remove", action="store_true", help="remove them, at once")
    asked = parser.parse_args(arguments)
    values = settings.get()
    if asked.command == "orphans":
        for line in orphans(remove=asked.remove):
            sys.stdout.write(f"{line}\n")
        return
    with db.transaction() as session:
        if asked.command == "create-key":
            key = create_key(session, asked.project, asked.name, admin=asked.admin)
            sys.stdout.write(f"{key}\n")
        else:
            ensure_embedded(session, values.key_file, f"http://{values.host}:{values.port}")


if __name__ == "__main__":
    main()
