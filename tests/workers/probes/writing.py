"""Writes, links, ages and locks what is not the child's."""

from __future__ import annotations

import os
from pathlib import Path

from tests.workers.probes.registry import probe


@probe()
def writes_to_its_input(scene):
    Path(scene["jobdir"], "input", "model.onnx").write_text("changed")
    return "changed"


@probe()
def adds_to_its_input(scene):
    Path(scene["jobdir"], "input", "new").write_text("new")
    return "added"


@probe()
def deletes_its_input(scene):
    victim = Path(scene["jobdir"], "input", "spare")
    victim.unlink()
    victim.write_text("spare")
    return "deleted"


@probe()
def renames_its_input(scene):
    here, there = Path(scene["jobdir"], "input", "spare"), Path(scene["jobdir"], "work", "spare")
    there.write_text("mine")
    os.replace(there, here)
    return "replaced"


@probe()
def takes_its_input_away(scene):
    here, there = Path(scene["jobdir"], "input", "spare"), Path(scene["jobdir"], "work", "spare")
    os.rename(here, there)
    os.rename(there, here)
    return "taken"


@probe()
def writes_to_its_order(scene):
    Path(scene["jobdir"], "order.json").write_text("{}")
    return "changed"


@probe()
def plants_a_module_in_the_job_directory(scene):
    Path(scene["jobdir"], "json.py").write_text("")
    return "planted"


@probe()
def writes_to_another_job(scene):
    Path(scene["other"], "output.txt").write_text("mine")
    return "written"


@probe()
def writes_to_the_temporary_folder(scene):
    path = Path(f"/tmp/probe-{os.getpid()}")
    path.write_text("x")
    path.unlink()
    return "written"


@probe()
def writes_to_shared_memory(scene):
    path = Path(f"/dev/shm/probe-{os.getpid()}")
    path.write_text("x")
    path.unlink()
    return "written"


@probe()
def truncates_a_secret(scene):
    os.truncate(scene["spoil"], 0)
    return "emptied"


@probe()
def locks_a_secret_away(scene):
    os.chmod(scene["spoil"], 0)
    os.chmod(scene["spoil"], 0o600)
    return "locked"


@probe()
def opens_its_input_to_all(scene):
    handle = os.open(Path(scene["jobdir"], "input", "model.onnx"), os.O_RDONLY)
    os.fchmod(handle, 0o666)
    return "opened"


@probe()
def changes_times_of_a_secret(scene):
    os.utime(scene["spoil"], (1, 1))
    return "aged"


@probe()
def hides_bytes_in_attributes(scene):
    path = Path(scene["jobdir"], "work", "attributes")
    path.write_text("x")
    os.setxattr(path, "user.hidden", b"x" * 1000)
    return "hidden"


@probe()
def links_a_secret(scene):
    os.link(scene["secret"], Path(scene["jobdir"], "work", "hard"))
    return "linked"


@probe()
def links_its_input(scene):
    os.link(
        Path(scene["jobdir"], "input", "model.onnx"), Path(scene["jobdir"], "output", "hard.onnx")
    )
    return "linked"


@probe()
def leaves_a_symlink(scene):
    os.symlink(scene["secret"], Path(scene["jobdir"], "output", "report.json"))
    return "linked"


@probe()
def leaves_a_fifo(scene):
    os.mkfifo(Path(scene["jobdir"], "output", "fifo"))
    return "left"


@probe(root=True)
def makes_a_device(scene):
    os.mknod(Path(scene["jobdir"], "work", "mem"), 0o600 | 0x2000, os.makedev(1, 1))
    return "made"


@probe(root=True)
def gives_a_file_away(scene):
    path = Path(scene["jobdir"], "work", "given")
    path.write_text("x")
    os.chown(path, 65534, 65534)
    return "given"
