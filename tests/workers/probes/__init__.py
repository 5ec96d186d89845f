"""Attacks on the fence: run inside it, and outside as the negative control.

Each probe returns what it achieved, or raises. None does damage, for one day the fence will be broken: attacks on
processes go to a victim started for them, attacks on the kernel ask for what changes nothing. Those marked `certain`
get through wherever there is no fence, or the test would show nothing; those marked `root`, as root.
Only the standard library: a plain user's interpreter may have nothing else.
"""

from tests.workers.probes import (  # noqa: F401 - each registers its probes
    kernel,
    leftovers,
    network,
    processes,
    reading,
    writing,
)
from tests.workers.probes.executing import ALONE
from tests.workers.probes.registry import CERTAIN, NEEDS_ROOT, PROBES

BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from tests.workers.probes import run; run.main(sys.argv[2:])"

__all__ = ["ALONE", "BOOT", "CERTAIN", "NEEDS_ROOT", "PROBES"]
