"""Runs a command inside the fence and watches it: the only way a user's file is ever opened.

supervise.py     starts the child, listens, stops it, tells how it ended
surroundings.py  what the child sees: paths and environment
streams.py       what the child says, bounded
watchdog.py      what the child takes, bounded

`workers.fence` is the fence itself, put up by the child around itself.
"""

from workers.sandbox.supervise import (
    EXIT_ORPHANED,
    EXIT_REFUSED,
    Exit,
    Kernel,
    SandboxMissing,
    Stop,
    level,
    probe,
    run,
)
from workers.sandbox.watchdog import Bounds, Breach

__all__ = [
    "EXIT_ORPHANED",
    "EXIT_REFUSED",
    "Bounds",
    "Breach",
    "Exit",
    "Kernel",
    "SandboxMissing",
    "Stop",
    "level",
    "probe",
    "run",
]
