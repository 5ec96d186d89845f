from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import servers
from tests.workers import probes
from workers.fence import seccomp

NOBODY = 65534
HERE = Path(__file__).parent
MACHINE = os.uname().machine
NEVER_SWEPT = {
    "fork",
    "vfork",
    "vhangup",
    "reboot",
}  # these would do something if the fence were broken


def interpreter_of(uid: int) -> str | None:
    """A Python that this user can start: root's own may lie where nobody else can go."""
    for python in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        check = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        options = {} if uid == os.getuid() else {"user": uid, "group": uid, "extra_groups": []}
        try:
            if subprocess.run(check, **options, cwd="/").returncode == 0:
                return python
        except OSError:
            continue
    return None


USERS = {"root": 0, "nobody": NOBODY} if os.getuid() == 0 else {"self": os.getuid()}
USERS = {name: uid for name, uid in USERS.items() if interpreter_of(uid)}


@dataclass(frozen=True)
class Told:
    """What the probes achieved."""

    outcomes: dict[str, tuple[str, str]]
    lines: list[str]
    code: int | None
    signal: int | None
    log: str
    level: str

    def through(self) -> dict[str, str]:
        return {name: why for name, (how, why) in self.outcomes.items() if how == "through"}


Attack = Callable[..., Told]


@pytest.fixture(scope="module", params=USERS)
def attack(request: pytest.FixtureRequest) -> Iterator[Attack]:
    """Runs the probes as a user, inside or outside."""
    uid = USERS[request.param]
    with tempfile.TemporaryDirectory(prefix="scene-", dir="/tmp") as folder:
        top = Path(folder)
        top.chmod(0o755)
        shutil.copytree(servers.ROOT / "workers", top / "code" / "workers", ignore=_no_engine)

        def attack_(*alone: str, inside: bool = True, without: str = "", **more: object) -> Told:
            scene = set_up(top, uid) | {"inside": inside, "without": without} | more
            return act(scene, alone, uid)

        yield attack_


def _no_engine(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name in ("engine", "__pycache__")]


def set_up(top: Path, uid: int) -> dict[str, object]:
    """A job directory, a job of someone else and a secret, all of the same user."""
    stage = Path(tempfile.mkdtemp(dir=top))
    jobdir, other = stage / "jobs" / "this", stage / "jobs" / "other"
    for folder in (*(jobdir / name for name in ("input", "work", "output")), other / "input"):
        folder.mkdir(parents=True)
    for path in (
        jobdir / "input" / "model.onnx",
        jobdir / "input" / "spare",
        jobdir / "order.json",
    ):
        path.write_text("{}")
    (other / "input" / "model.onnx").write_text("another's model")
    (stage / "jobs" / "secret.env").write_text("password")
    (stage / "spoil").write_text("something to spoil")
    shutil.copy(HERE / "scene_worker.py", stage)
    copied = jobdir / "input" / "tests" / "workers" / "probes"
    shutil.copytree(HERE / "probes", copied, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (stage, *stage.rglob("*")):
        os.chown(path, uid, os.getgid() if uid == os.getuid() else uid)
    return {
        "boot": probes.BOOT,
        "stage": str(stage),
        "jobdir": str(jobdir),
        "other": str(other),
        "secret": str(stage / "jobs" / "secret.env"),
        "spoil": str(stage / "spoil"),
        "unix": str(stage / "socket"),
        "abstract": stage.name,
    }


def act(scene: dict, alone: tuple[str, ...], uid: int) -> Told:
    worker = [interpreter_of(uid), str(Path(scene["stage"]) / "scene_worker.py")]
    done = subprocess.run(
        [*worker, json.dumps(scene), *alone],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(scene["stage"]).parent / "code")},
        cwd=scene["stage"],
        capture_output=True,
        text=True,
        **({} if uid == os.getuid() else {"user": uid, "group": uid, "extra_groups": []}),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    outcomes = {}
    if not alone and "sweep" not in scene:
        outcomes = {name: (how, why) for name, how, why in map(json.loads, told["lines"])}
        assert told["code"] == 0, told
    return Told(outcomes=outcomes, **told)


def test_no_probe_gets_through_the_fence(attack: Attack) -> None:
    told = attack()
    assert told.through() == {}
    assert set(told.outcomes) == set(probes.PROBES)
    assert told.level.startswith("landlock-")


def test_the_same_probes_get_through_where_there_is_no_fence(attack: Attack) -> None:
    told = attack(inside=False)
    expected = probes.CERTAIN - (
        probes.NEEDS_ROOT if told.outcomes["mounts"][0] != "through" else set()
    )
    assert {name: told.outcomes[name] for name in expected - set(told.through())} == {}
    assert len(expected) > 60


@pytest.mark.parametrize("alone", probes.ALONE)
def test_no_other_program_can_be_executed_inside(attack: Attack, alone: str) -> None:
    inside, outside = attack(alone), attack(alone, inside=False)
    assert inside.code != 7
    assert outside.code == 7 or alone == "use_calls_of_another_abi", outside.log


@pytest.mark.skipif(MACHINE != "x86_64", reason="x32 is an ABI of x86-64")
def test_call_of_another_abi_is_deadly(attack: Attack) -> None:
    assert attack("use_calls_of_another_abi").signal == signal.SIGSYS


def test_without_landlock_files_are_open(attack: Attack) -> None:
    through = attack(without="landlock").through()
    assert {"reads_passwd", "reads_another_job", "writes_to_its_input", "lists_processes"} <= set(
        through
    )


def test_without_seccomp_calls_that_landlock_does_not_see_are_open(attack: Attack) -> None:
    through = attack(without="seccomp").through()
    assert {"forks", "sends_by_udp", "locks_a_secret_away", "watches_another_job"} <= set(through)


def test_every_refused_call_is_refused_by_the_running_kernel(attack: Attack) -> None:
    column = seccomp.MACHINES[MACHINE].column
    judged_by_argument = seccomp.judged(1, gpu=False)
    table = {
        name: numbers[column]
        for name, numbers in seccomp.CALLS.items()
        if numbers[column] is not None and name not in {*judged_by_argument, *NEVER_SWEPT}
    }
    answers = json.loads(attack(sweep=table).lines[0])
    assert set(answers.values()) <= {errno.EPERM, errno.EACCES, errno.ENOSYS}, answers
    assert len(answers) > 80


def test_documentation_counts_the_attacks() -> None:
    attacks = len(probes.PROBES) + len(probes.ALONE)
    assert f"is {attacks} attacks" in (servers.ROOT / "docs" / "security.md").read_text()
