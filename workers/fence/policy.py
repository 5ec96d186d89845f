"""What a child may see, change and use up: written by the parent, obeyed by the trampoline."""

from __future__ import annotations

import json
from typing import NamedTuple


class Policy(NamedTuple):
    """Paths are absolute; each grants what lies beneath it too."""

    parent: int  # the process to die with
    landlock: bool
    seccomp: bool
    gpu: bool
    listed: tuple[str, ...]  # names only
    read: tuple[str, ...]
    execute: tuple[str, ...]  # files: the interpreter and its loader
    write: tuple[str, ...]
    limits: dict[str, int]  # by the name of the RLIMIT

    def to_json(self) -> str:
        """The policy as one argument of a command line."""
        return json.dumps(self._asdict())


def from_json(text: str) -> Policy:
    """Reads what `to_json` wrote."""
    return Policy(**json.loads(text))
