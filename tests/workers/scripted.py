"""What scripted engines have in common; its text stands at the top of each. The real engine is tested elsewhere.

Only the standard library, so that a child starts in no time. The test left an honest report in the input.
"""

import json
import sys
from pathlib import Path

TASK, JOBDIR = sys.argv[1], Path(sys.argv[2])
NAMES = ("baseline", "prune.magnitude", "quantize.int8", "verify")
HONEST = json.loads((JOBDIR / "input" / "report.json").read_text())


def say(stage, fraction, event="progress", message="", **changes):
    known = {"event": event, "stage": stage, "stages": len(NAMES), "name": NAMES[stage]}
    line = json.dumps({**known, "fraction": fraction, "message": message, **changes})
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def partial(stages):
    unfinished = {"outcome": None, "artifacts": [], "verification": None, "complete": False}
    return {**HONEST, **unfinished, "stages": HONEST["stages"][:stages]}


def write(name, content):
    """Below output/, atomically."""
    path = JOBDIR / "output" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".new")
    written.write_text(content if isinstance(content, str) else json.dumps(content))
    return written.replace(path)


def fail(**failure):
    write("failure.json", failure)
    sys.exit(10)


def as_told():
    """What an honest engine does."""
    if TASK == "compress":
        for stage in range(3):
            say(stage, stage / 4, "stage_started")
            write("report.json", partial(stage + 1))
            say(stage, (stage + 1) / 4, "stage_done", "measured")
        write("artifacts/model.onnx", "small model")
    if TASK == "verify":
        write("report.json", HONEST)
        say(3, 1.0, "stage_done")
