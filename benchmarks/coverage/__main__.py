"""`make bench-coverage`: every family of architectures, ours beside the peer; the table goes into docs/coverage.md.

Exports and results are kept in the cache folder, so that a run that was cut off goes on; results of the networks named by --only are
made anew.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import _record

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "coverage.md"
START, END = "<!-- measured -->\n", "<!-- end of measured -->\n"

RATIO = 0.45
PLAN_SECONDS = 30
LIMIT_SECONDS = {"export": 900, "ours": 180, "peer": 120}
"""Of processor time; a process that needs more counts as failed."""
LIMIT_BYTES = 12 * 2**30


@dataclass(frozen=True)
class Family:
    """The smallest member of a family of architectures."""

    name: str
    member: str
    pixels: int


def families() -> list[Family]:
    """The smallest member in timm of each family up to 60 million parameters and 320 pixels."""
    rows = (line.split() for line in (HERE / "families.txt").read_text().splitlines())
    return [Family(name, member, int(pixels)) for name, member, pixels in rows]


def main() -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(prog="benchmarks.coverage", description=__doc__)
    parser.add_argument("--peer-python", type=Path, default=Path(".venv-coverage/bin/python"))
    parser.add_argument("--cache", type=Path, default=_record.OUTPUT / "coverage")
    parser.add_argument("--only", nargs="*", default=[], help="families to run anew")
    parser.add_argument("--no-run", action="store_true", help="write the page from the cache")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    for family in families():
        if not options.no_run and (not options.only or family.name in options.only):
            measure(family, options)
    rows = {family.name: row(family, options.cache) for family in families()}
    _record.write("coverage", {"families": rows})
    write_page(rows)


def measure(family: Family, options: argparse.Namespace) -> None:
    """Exports the network once, and prunes it with both."""
    model = options.cache / f"{family.name}.onnx"
    network = [family.member, str(family.pixels)]
    peer = str(options.peer_python)
    if not model.exists():
        limited("export", [peer, str(HERE / "export.py"), *network, str(model)])
    if not model.exists():
        return
    for who, command in {
        "ours": [sys.executable, "-m", "benchmarks.coverage.ours", str(model)],
        "peer": [peer, str(HERE / "peer.py"), *network],
    }.items():
        result = model.with_suffix(f".{who}.json")
        if options.only or not result.exists():
            why = limited(who, [*command, str(result)])
            if why:
                result.write_text(json.dumps({"valid": False, "why": why}))
    print(family.name, row(family, options.cache), flush=True)


def limited(what: str, command: Sequence[str]) -> str:
    """Runs a command with a limit of time and memory; '' or how it ended."""
    seconds = LIMIT_SECONDS[what]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))

    ended = subprocess.run(
        command, preexec_fn=limit, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if ended.returncode in (-9, -24):
        return f"not done within {seconds} s of processor time"
    return f"the process ended with {ended.returncode}" if ended.returncode else ""


def row(family: Family, cache: Path) -> dict[str, Any]:
    """What is known of a family."""
    found: dict[str, Any] = {"member": family.member}
    for who in ("ours", "peer"):
        path = cache / f"{family.name}.{who}.json"
        if path.exists():
            found[who] = json.loads(path.read_text())
    return found


def write_page(rows: dict[str, dict[str, Any]]) -> None:
    """Replaces the measured part of the page."""
    before, _, rest = PAGE.read_text().partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}{table(rows)}{END}{after}")


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The summary and a line for each family."""
    measured = {n: r for n, r in rows.items() if "ours" in r or "peer" in r}
    lines = [
        f"{len(measured)} of {len(rows)} families measured.\n",
        "| | ModelPress | Torch-Pruning 1.6.1 |",
        "|---|---|---|",
        *(
            f"| {title} | {count(measured, 'ours', test)} | {count(measured, 'peer', test)} |"
            for title, test in TESTS.items()
        ),
        "\n| family | network | ModelPress: parameters left | planned in | Torch-Pruning: parameters left |",
        "|---|---|---|---|---|",
        *(line(name, found) for name, found in measured.items()),
        *failures(measured),
    ]
    return "\n".join(lines) + "\n"


def failures(rows: dict[str, dict[str, Any]]) -> list[str]:
    """A table of the families that ours fails on; nothing where there are none."""
    whys = {n: r["ours"]["why"] for n, r in rows.items() if "ours" in r and not r["ours"]["valid"]}
    head = ["\n| family | why not, ModelPress |", "|---|---|"] if whys else []
    return head + [f"| {name} | {_cell(why)} |" for name, why in whys.items()]


TESTS = {
    "valid": lambda found: found["valid"],
    f"parameters at {RATIO} or less": lambda found: found["valid"] and found["ratio"] <= RATIO,
    f"planned in less than {PLAN_SECONDS} s": lambda found: (
        found["valid"] and found["seconds"] < PLAN_SECONDS
    ),
}


def count(rows: dict[str, dict[str, Any]], who: str, test: Any) -> str:
    """'12 of 20'."""
    known = [found[who] for found in rows.values() if who in found]
    return f"{sum(map(test, known))} of {len(known)}"


def line(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    ours, peer = found.get("ours"), found.get("peer")
    seconds = f"{ours['seconds']:.1f} s" if ours and ours["valid"] else ""
    return f"| {name} | {found['member']} | {_left(ours)} | {seconds} | {_left(peer)} |"


def _left(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not run"
    return f"{found['ratio']:.3f}" if found["valid"] else "failed"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:160]


if __name__ == "__main__":
    main()
