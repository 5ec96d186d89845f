"""`python -m workers.sandbox` says how children are fenced on this machine; exits with 97 where they can't be."""

from __future__ import annotations

import sys

from workers import sandbox

if __name__ == "__main__":
    try:
        sys.stdout.write(f"{sandbox.level()}\n")
    except sandbox.SandboxMissing as e:
        sys.stderr.write(f"{e}\n")
        sys.exit(sandbox.EXIT_REFUSED)
