"""Runs all probes, or one, or a table of calls; called by BOOT in a child, fenced or not."""

from __future__ import annotations

import ctypes
import json
import sys

from tests.workers.probes import executing, ordinary
from tests.workers.probes.registry import CERTAIN, LIBC, PROBES


def sweep(table):
    """Each call of a table, with arguments that no call takes: by name, the errno it failed with, or 0."""
    answers = {}
    for name, number in table.items():
        ctypes.set_errno(0)
        answer = LIBC.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
        answers[name] = ctypes.get_errno() if answer == -1 else 0
    return answers


def say(what):
    sys.stdout.write(f"{json.dumps(what)}\n")
    sys.stdout.flush()


def main(arguments) -> None:
    """`arguments`: the scene in JSON, and the name of a probe that gets a process of its own."""
    scene = json.loads(arguments[0])
    if len(arguments) > 1:
        executing.ALONE[arguments[1]](scene)
    if "sweep" in scene:
        say(sweep(scene["sweep"]))
        return
    ordinary.ordinary_work(scene)
    whole = scene["inside"] and not scene["without"]
    for name, function in PROBES.items():
        if not whole and name not in CERTAIN:
            continue
        try:
            outcome = ["through", repr(function(scene))]
        except Exception as e:
            outcome = ["blocked", f"{type(e).__name__}: {e}"]
        say([name, *outcome])
