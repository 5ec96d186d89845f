"""A careless worker with secrets, run as `python scene_worker.py SCENE [PROBE]`: it starts probes, fenced or not.

It runs as the user whose fence is tested, root or a plain one, from a copy of our packages that this user can read.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from workers import sandbox
from workers.sandbox import supervise

HERE = Path(__file__).parent


def main() -> None:
    scene, alone = json.loads(sys.argv[1]), sys.argv[2:]
    os.environ["MODELPRESS_S3_SECRET_ACCESS_KEY"] = "hunter2"
    with contextlib.ExitStack() as stack:
        scene |= props(stack, scene)
        jobdir = Path(scene["jobdir"])
        boot = [sys.executable, "-c", scene["boot"], str(jobdir / "input")]
        argv = [*boot, json.dumps(scene), *alone]
        told = fenced(argv, jobdir, scene) if scene["inside"] else bare(argv, jobdir)
    sys.stdout.write(json.dumps(told))


def props(stack: contextlib.ExitStack, scene: dict) -> dict:
    """What there is to attack: a victim of the same user, servers, an open secret."""
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    stack.callback(victim.wait)
    stack.callback(victim.kill)
    tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    here = stack.enter_context(socket.socket(socket.AF_UNIX))
    here.bind(scene["unix"])
    here.listen()
    abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
    abstract.bind(f"\0{scene['abstract']}")
    abstract.listen()
    leaked = os.open(scene["secret"], os.O_RDONLY)
    os.set_inheritable(leaked, True)
    return {
        "worker": os.getpid(),
        "victim": victim.pid,
        "address": mapped_address(victim.pid),
        "port": tcp.getsockname()[1],
        "leaked": leaked,
    }


def mapped_address(pid: int) -> int:
    return int(Path(f"/proc/{pid}/maps").read_text().partition("-")[0], 16)


def fenced(argv: list[str], jobdir: Path, scene: dict) -> dict:
    """`without` names a part of the fence to leave out: the tests must then notice."""
    kernel = supervise.probe()
    if scene["without"]:
        os.environ["ALLOW_UNSANDBOXED"] = "1"
        kernel = kernel._replace(**{scene["without"]: 0})
        supervise.probe = lambda: kernel
    lines: list[str] = []
    ended = sandbox.run(
        argv, jobdir, sandbox.Bounds(wall_s=10), on_line=lambda line: not lines.append(line)
    )
    return {
        "lines": lines,
        "code": ended.code,
        "signal": ended.signal,
        "log": ended.log_tail,
        "level": ended.level,
    }


def bare(argv: list[str], jobdir: Path) -> dict:
    """As subprocesses usually are: its own descriptors, environment and everything else are handed on."""
    done = subprocess.run(argv, cwd=jobdir, capture_output=True, text=True, close_fds=False)
    code, signal = (done.returncode, None) if done.returncode >= 0 else (None, -done.returncode)
    return {
        "lines": done.stdout.splitlines(),
        "code": code,
        "signal": signal,
        "log": done.stderr,
        "level": "none",
    }


if __name__ == "__main__":
    main()
