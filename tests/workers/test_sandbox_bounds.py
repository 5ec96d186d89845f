"""Children that take too much, will not stop, or talk too much."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from workers import sandbox
from workers.sandbox import streams, supervise

MIB = 1 << 20
Run = Callable[..., sandbox.Exit]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    for name in ("input", "work", "output"):
        (tmp_path / name).mkdir()

    def run_(script: str, *, bounds: dict | None = None, **options) -> sandbox.Exit:
        limits = sandbox.Bounds(**{"wall_s": 20, "memory_bytes": 512 * MIB, **(bounds or {})})
        return sandbox.run([sys.executable, "-I", "-c", script], tmp_path, limits, **options)

    return run_


def breach_of(ended: sandbox.Exit) -> str | None:
    assert ended.breach is None or ended.signal == signal.SIGKILL
    return ended.breach and ended.breach[0]


def test_exit_status_lines_and_log_arrive(run: Run) -> None:
    lines: list[str] = []
    script = "import sys; print('taken'); print('left', flush=True); print('error', file=sys.stderr); sys.exit(3)"

    def take(line: str) -> bool:
        lines.append(line)
        return line == "taken"

    ended = run(script, on_line=take)
    assert (ended.code, ended.signal, ended.stop, ended.breach) == (3, None, None, None)
    assert lines == ["taken", "left"]
    assert sorted(ended.log_tail.split()) == ["error", "left"]
    assert ended.level == sandbox.level()


def test_memory_hog_is_killed(run: Run) -> None:
    ended = run(
        "x = []\nwhile True: x.append(b'x' * (16 << 20))", bounds={"memory_bytes": 256 * MIB}
    )
    assert breach_of(ended) == "memory" or "MemoryError" in ended.log_tail


def test_absurd_allocation_fails_at_once(run: Run) -> None:
    """It must not be tried: a machine may promise memory that it does not have."""
    ended = run("import mmap; mmap.mmap(-1, 4 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)")
    assert "Cannot allocate memory" in ended.log_tail


def test_shared_memory_hog_is_killed(run: Run) -> None:
    hog = """
        import mmap
        while True:
            m = mmap.mmap(-1, 64 << 20); m.write(bytes(64 << 20)); globals()[id(m)] = m
    """
    ended = run(textwrap.dedent(hog), bounds={"memory_bytes": 256 * MIB})
    assert breach_of(ended) == "memory"
    assert ended.peak_memory_bytes > 256 * MIB


def test_mapped_files_are_not_the_childs_own_memory(run: Run, tmp_path: Path) -> None:
    with open(tmp_path / "input" / "data", "wb") as file:
        for _ in range(4):
            file.write(os.urandom(MIB) * 64)
    script = "import mmap; f = open('input/data'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); print(m.find(b'no such bytes'))"
    ended = run(script, bounds={"memory_bytes": 128 * MIB})
    assert ended.code == 0, ended


def test_disk_hog_is_killed(run: Run) -> None:
    hog = "n = 0\nwhile True:\n  n += 1; open(f'work/{n}', 'wb').write(bytes(4 << 20))"
    ended = run(hog, bounds={"disk_bytes": 64 * MIB})
    assert breach_of(ended) == "disk"


def test_one_huge_file_is_refused_by_the_kernel(run: Run) -> None:
    script = "open('work/huge', 'wb').truncate(1 << 40)"
    ended = run(script, bounds={"disk_bytes": 64 * MIB})
    assert ended.code == 1
    assert "File too large" in ended.log_tail


def test_deleted_files_that_are_still_open_count(run: Run) -> None:
    hog = """
        import os
        kept = []
        while True:
            f = open('work/x', 'wb'); f.write(bytes(4 << 20)); f.flush(); os.unlink('work/x'); kept.append(f)
    """
    ended = run(textwrap.dedent(hog), bounds={"disk_bytes": 64 * MIB})
    assert breach_of(ended) == "disk"


def test_many_files_are_too_many(run: Run) -> None:
    hog = "n = 0\nwhile True:\n  n += 1; open(f'output/{n}', 'wb').close()"
    assert breach_of(run(hog, bounds={"files": 500})) == "files"


def test_directories_without_end_are_too_many(run: Run) -> None:
    hog = "import os, time; os.chdir('work')\nwhile True:\n  os.mkdir('d'); os.chdir('d')\n  time.sleep(0.001)"
    ended = run(hog)
    assert breach_of(ended) == "files"
    assert "nested deeper" in ended.breach[1]


def test_directory_that_hides_its_files_is_noticed_by_a_plain_user(run: Run) -> None:
    script = "import os, time; os.mkdir('work/dark', 0o000); time.sleep(20)"
    ended = run(script, bounds={"wall_s": 1})
    assert breach_of(ended) == ("wall" if os.getuid() == 0 else "files")


def test_full_disk_stops_the_child_before_others_suffer(run: Run, monkeypatch) -> None:
    disk = os.statvfs("/")
    full = os.statvfs_result((*disk[:3], 1, 1, *disk[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    assert breach_of(run("import time; time.sleep(20)")) == "reserve"


def test_sleeper_is_killed_when_its_time_is_over(run: Run) -> None:
    ended = run("import time; time.sleep(20)", bounds={"wall_s": 0.5})
    assert breach_of(ended) == "wall"
    assert ended.seconds < 3


def test_busy_child_is_killed_when_its_time_is_over(run: Run) -> None:
    assert breach_of(run("while True: pass", bounds={"wall_s": 0.5})) == "wall"


def test_thread_bomb_is_killed(run: Run) -> None:
    bomb = """
        import threading, time
        while True:
            try: threading.Thread(target=time.sleep, args=(20,), daemon=True).start()
            except RuntimeError: time.sleep(0.1)
    """
    assert breach_of(run(textwrap.dedent(bomb), bounds={"threads": 64})) == "threads"


def test_stop_is_asked_for_softly_first(run: Run) -> None:
    script = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); print('up', flush=True); time.sleep(20)"
    up: list[str] = []
    ended = run(
        script,
        on_line=lambda line: not up.append(line),
        should_stop=lambda: "drained" if up else None,
    )
    assert (ended.stop, ended.code) == ("drained", 5)


def test_child_hears_signals_that_its_worker_does_not(run: Run) -> None:
    """Pools of workers ignore and block signals, and children inherit both."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        up: list[str] = []
        ended = run(
            "import time; print('up', flush=True); time.sleep(20)",
            on_line=lambda line: not up.append(line),
            should_stop=lambda: "cancelled" if up else None,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGTERM, before)
    assert (ended.stop, ended.signal) == ("cancelled", signal.SIGTERM)


def test_child_that_ignores_sigterm_is_killed_after_the_grace(run: Run) -> None:
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(20)"
    up: list[str] = []
    ended = run(
        script,
        bounds={"grace_s": 0.5},
        on_line=lambda line: not up.append(line),
        should_stop=lambda: "cancelled" if up else None,
    )
    assert (ended.stop, ended.signal) == ("cancelled", signal.SIGKILL)
    assert ended.seconds < 5


def test_worker_that_lost_its_lease_kills_at_once(run: Run) -> None:
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(20)"
    ended = run(script, bounds={"grace_s": 10}, should_stop=lambda: "fenced")
    assert (ended.stop, ended.signal) == ("fenced", signal.SIGKILL)
    assert ended.seconds < 5


def test_flood_of_lines_is_cut_off(run: Run, monkeypatch) -> None:
    monkeypatch.setattr(streams, "BURST_BYTES", 4 * MIB)
    ended = run("while True: print('x' * 1000)")
    assert breach_of(ended) == "output"
    assert len(ended.log_tail) <= streams.LOG_TAIL_BYTES


def test_line_without_end_goes_to_the_log_in_pieces(run: Run) -> None:
    lines: list[str] = []
    script = "import sys; sys.stdout.write('x' * 1_000_000); print(); print('after')"
    ended = run(script, on_line=lambda line: not lines.append(line))
    assert ended.code == 0
    assert lines == ["after"]
    assert len(ended.log_tail) == streams.LOG_TAIL_BYTES


def test_child_that_closed_its_streams_is_still_watched(run: Run) -> None:
    script = "import os, time; os.close(1); os.close(2); time.sleep(20)"
    assert breach_of(run(script, bounds={"wall_s": 0.5})) == "wall"


def test_bytes_that_steer_terminals_are_kept_out_of_the_log(run: Run) -> None:
    script = (
        r"import sys; sys.stderr.buffer.write(b'\x1b[31mred\x1b[0m \x1b]0;title\x07 \0 \xff end\n')"
    )
    assert run(script).log_tail == "red �]0;title� � � end\n"


def test_error_of_a_listener_ends_the_child(run: Run) -> None:
    def refuse(line: str) -> bool:
        raise RuntimeError(line)

    with pytest.raises(RuntimeError, match=r"^\d+$") as raised:
        run("import os, time; print(os.getpid(), flush=True); time.sleep(20)", on_line=refuse)
    assert not _alive(int(str(raised.value)))


def test_child_dies_with_its_worker(tmp_path: Path) -> None:
    """A killed worker can't kill anything: the kernel must."""
    for name in ("work", "output"):
        (tmp_path / name).mkdir()
    worker = f"""
        import sys
        from pathlib import Path
        from workers import sandbox
        child = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
        def tell(line): print(line, flush=True); return True
        sandbox.run(child, Path({str(tmp_path)!r}), sandbox.Bounds(wall_s=60), on_line=tell)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(worker)], stdout=subprocess.PIPE, text=True
    ) as process:
        child = int(process.stdout.readline())
        assert _alive(child)
        process.kill()
    deadline = time.monotonic() + 10
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(child)


def test_machine_short_of_memory_takes_the_child_first(run: Run) -> None:
    scores: list[int] = []

    def look(line: str) -> bool:
        scores.append(int(Path(f"/proc/{line}/oom_score_adj").read_text()))
        return True

    run(
        "import os, time; print(os.getpid(), flush=True); time.sleep(20)",
        on_line=look,
        should_stop=lambda: "fenced" if scores else None,
    )
    assert scores[0] >= 900


def test_what_a_child_writes_is_for_nobody_else(run: Run, tmp_path: Path) -> None:
    run("import os; os.mkdir('output/a'); open('output/a/b', 'w').close()")
    assert (tmp_path / "output" / "a").stat().st_mode & 0o077 == 0
    assert (tmp_path / "output" / "a" / "b").stat().st_mode & 0o077 == 0


def test_kernel_without_the_fence_is_refused(run: Run, monkeypatch) -> None:
    monkeypatch.setattr(supervise, "probe", lambda: sandbox.Kernel(landlock=0, seccomp=True))
    monkeypatch.delenv("ALLOW_UNSANDBOXED", raising=False)
    with pytest.raises(sandbox.SandboxMissing, match="ALLOW_UNSANDBOXED=1"):
        run("print('never')")


def test_no_fence_at_all_is_called_none(run: Run, monkeypatch) -> None:
    monkeypatch.setattr(supervise, "probe", lambda: sandbox.Kernel(landlock=0, seccomp=False))
    monkeypatch.setenv("ALLOW_UNSANDBOXED", "1")
    ended = run("open('/etc/passwd'); print('open')")
    assert (ended.level, ended.code) == ("none", 0)


def test_fence_that_can_not_be_put_up_runs_nothing(run: Run, monkeypatch) -> None:
    """The parent thinks that all is well; the child finds a path that can't be opened."""
    monkeypatch.setattr(supervise.surroundings, "listed", lambda: (f"/{'x' * 300}",))
    ended = run("print('never')")
    assert ended.code == sandbox.EXIT_REFUSED
    assert "File name too long" in ended.log_tail


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
