"""The filter as a program: run here, instruction by instruction, for both architectures and any process id."""

from __future__ import annotations

import errno
import signal

import pytest

from workers.fence import seccomp
from workers.fence.seccomp import ALLOW, KILL, MACHINES, Instruction, Machine, refuse

PID = 4242
FORK = signal.SIGCHLD
THREAD = 0x3D0F00  # what pthread_create asks of clone
EPERM, EACCES, ENOSYS, ENOTTY = map(refuse, (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTTY))


def decide(program: list[Instruction], machine: Machine, number: int, *arguments: int) -> int:
    """What the kernel would answer: an interpreter of the six operations that the program uses."""
    data = {0: number, 4: machine.audit, **{16 + 8 * i: a for i, a in enumerate(arguments)}}
    accumulator = at = 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            accumulator = data.get(operand, 0) & 0xFFFF_FFFF
            continue
        holds = {
            0x15: accumulator == operand,
            0x35: accumulator >= operand,
            0x45: bool(accumulator & operand),
        }[code]
        at += if_true if holds else if_false


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Machine:
    return MACHINES[request.param]


def answer(machine: Machine, name: str, *arguments: int, gpu: bool = False) -> int:
    number = seccomp.CALLS[name][machine.column]
    assert number is not None
    return decide(seccomp.program(machine, PID, gpu=gpu), machine, number, *arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("clone", (THREAD,), ALLOW),
        ("clone", (FORK,), EPERM),
        ("clone", (0x4111,), EPERM),  # CLONE_VM | CLONE_VFORK, as posix_spawn asks
        ("clone3", (), ENOSYS),
        ("socket", (2, 1, 0), EACCES),
        ("kill", (PID, 15), ALLOW),
        ("kill", (PID + 1, 0), EPERM),
        ("kill", (0xFFFF_FFFF, 0), EPERM),  # every process
        ("kill", (0, 0), EPERM),  # the process group
        ("tgkill", (PID, PID + 7, 6), ALLOW),
        ("tgkill", (PID - 1, PID + 7, 6), EPERM),
        ("prlimit64", (0,), ALLOW),
        ("prlimit64", (1,), EPERM),
        ("sched_setaffinity", (0,), ALLOW),
        ("sched_setaffinity", (1,), EPERM),
        ("prctl", (15,), ALLOW),  # PR_SET_NAME
        ("prctl", (1,), EPERM),  # PR_SET_PDEATHSIG
        ("prctl", (4,), EPERM),  # PR_SET_DUMPABLE
        ("fcntl", (3, 4), ALLOW),  # F_SETFL
        ("fcntl", (3, 8), EPERM),  # F_SETOWN
        ("fcntl", (3, 1024), EPERM),  # F_SETLEASE
        ("ioctl", (1, 0x5401), ALLOW),  # isatty
        ("ioctl", (1, 0x5412), ENOTTY),  # TIOCSTI
        ("io_uring_setup", (), ENOSYS),
        ("ptrace", (), EPERM),
        ("memfd_create", (), EPERM),
    ],
)
def test_call_is_answered(
    machine: Machine, name: str, arguments: tuple[int, ...], expected: int
) -> None:
    assert answer(machine, name, *arguments) == expected


def test_only_low_halves_of_arguments_count(machine: Machine) -> None:
    """As in the kernel, which takes a process id of 32 bits: no high bits may disguise another process."""
    assert answer(machine, "kill", (1 << 32) + PID + 1, 9) == EPERM


def test_drivers_of_a_gpu_may_talk_to_their_devices(machine: Machine) -> None:
    assert answer(machine, "ioctl", 5, 0xC020462A, gpu=True) == ALLOW
    assert answer(machine, "ioctl", 0, 0x5412, gpu=True) == EPERM
    assert answer(machine, "memfd_create", gpu=True) == ALLOW
    assert answer(machine, "socket", gpu=True) == EACCES


def test_every_call_of_the_table_is_judged(machine: Machine) -> None:
    by_argument = seccomp.judged(PID, gpu=False)
    plain = [
        name
        for name, numbers in seccomp.CALLS.items()
        if numbers[machine.column] is not None and name not in by_argument
    ]
    assert {answer(machine, name) for name in plain} == {EPERM, EACCES, ENOSYS}


def test_calls_that_no_table_row_names_pass(machine: Machine) -> None:
    read, write, mmap = ((0, 63), (1, 64), (9, 222))
    program = seccomp.program(machine, PID, gpu=False)
    for numbers in (read, write, mmap):
        assert decide(program, machine, numbers[machine.column]) == ALLOW


def test_calls_younger_than_the_table_do_not_exist(machine: Machine) -> None:
    program = seccomp.program(machine, PID, gpu=False)
    assert decide(program, machine, seccomp.LAST_KNOWN) == ALLOW
    assert decide(program, machine, seccomp.LAST_KNOWN + 1) == ENOSYS


def test_calls_of_another_architecture_are_deadly() -> None:
    program = seccomp.program(MACHINES["x86_64"], PID, gpu=False)
    i386 = Machine(0x4000_0003, 0)
    assert decide(program, i386, 20) == KILL
    assert decide(program, MACHINES["aarch64"], 20) == KILL
    assert decide(program, MACHINES["x86_64"], 0x4000_0000 + 39) == KILL


@pytest.mark.parametrize(("name", "rows"), [("x86_64", 117), ("aarch64", 103)])
def test_no_row_is_lost_or_added_by_accident(name: str, rows: int) -> None:
    """What is refused is a decision: who changes the table changes this number."""
    column = MACHINES[name].column
    assert sum(numbers[column] is not None for numbers in seccomp.CALLS.values()) == rows


def test_numbers_are_unique(machine: Machine) -> None:
    numbers = [row[machine.column] for row in seccomp.CALLS.values()]
    known = [number for number in numbers if number is not None]
    assert len(known) == len(set(known))


def test_program_is_short_enough_for_the_kernel(machine: Machine) -> None:
    assert len(seccomp.program(machine, PID, gpu=False)) <= 4096  # BPF_MAXINSNS
