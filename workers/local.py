"""`python -m workers.local`: a recipe on files of this machine, with no server; the CLI's `--local`.

Standard output: one spec.progress.Progress a line. After a failure the last line is its spec.state.Failure and the
exit status EXIT_FAILED. What the engine made lies in --out, the report too, even that of a failed run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from pydantic import BaseModel, TypeAdapter

from modelpress.spec import order
from modelpress.spec.constraint import Constraint
from modelpress.spec.inspection import Architecture
from modelpress.spec.job import Formats, Images, Limits
from modelpress.spec.recipe import Recipe
from modelpress.spec.report import Report
from modelpress.spec.state import Failure, FailureClass
from modelpress.spec.step import Role
from workers import attempt, sandbox

REPORT = "report.json"
_ZIP = b"PK\x03\x04"
_HEAD_BYTES = 9

_FORMATS: TypeAdapter[Formats] = TypeAdapter(Formats)
_CONSTRAINTS: TypeAdapter[tuple[Constraint, ...]] = TypeAdapter(tuple[Constraint, ...])
_MODELS: TypeAdapter[dict[Role, Path]] = TypeAdapter(dict[Role, Path])
_ARCHITECTURES: TypeAdapter[dict[Role, Architecture]] = TypeAdapter(dict[Role, Architecture])


class Unusable(Exception):
    """A model in another format than ONNX could not be converted; `ended` says why."""

    def __init__(self, ended: attempt.Ended) -> None:
        super().__init__(ended.how)
        self.ended = ended


def main(argv: list[str] | None = None) -> int:
    """Runs one order and says how it went; answers the exit status."""
    args = _arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / REPORT).unlink(missing_ok=True)
    stop = _stop()
    with tempfile.TemporaryDirectory(prefix="modelpress-") as directory:
        jobdir = Path(directory).resolve()
        try:
            asked = _order(args, jobdir, stop)
            (jobdir / order.ORDER).write_text(asked.model_dump_json(by_alias=True))
            ended = attempt.run(jobdir, limits=Limits(), on_progress=_say, should_stop=stop)
        except Unusable as e:
            return _deliver(e.ended, args.out)
        except sandbox.SandboxMissing as e:
            return _fail(_failure(FailureClass.RESOURCE, "sandbox_missing", str(e)))
        return _deliver(ended, args.out)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers.local", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--models", type=_MODELS.validate_json, default={})
    parser.add_argument("--architecture")
    parser.add_argument("--architectures", type=_ARCHITECTURES.validate_json, default={})
    parser.add_argument("--data", type=Path)
    parser.add_argument("--eval-data", type=Path)
    parser.add_argument("--sensitivity", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", type=Recipe.model_validate_json, required=True)
    parser.add_argument("--images", type=Images.model_validate_json, default=Images())
    parser.add_argument("--formats", type=_FORMATS.validate_json, default=())
    parser.add_argument("--constraints", type=_CONSTRAINTS.validate_json, default=())
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def _order(args: argparse.Namespace, jobdir: Path, stop: attempt.ShouldStop) -> order.CompressOrder:
    """The order, with copies of the files: the child must not be able to change the user's own.

    Raises:
        Unusable: a model could not be converted to ONNX.
    """
    (jobdir / order.INPUT).mkdir()
    return order.CompressOrder(
        model=_model(args.model, args.architecture, jobdir, "model", stop),
        models={
            role: _model(path, args.architectures.get(role), jobdir, f"model-{role}", stop)
            for role, path in args.models.items()
        },
        data=order.OrderData(
            train=_copied(args.data, jobdir, "train") if args.data else None,
            eval=_copied(args.eval_data, jobdir, "eval") if args.eval_data else None,
            images=args.images,
        ),
        sensitivity=_copied(args.sensitivity, jobdir, "sensitivity") if args.sensitivity else None,
        recipe=args.recipe,
        formats=args.formats,
        constraints=args.constraints,
        seed=args.seed,
        sandbox=sandbox.level(),
    )


def _model(
    path: Path, architecture: str | None, jobdir: Path, name: str, stop: attempt.ShouldStop
) -> order.FileRef:
    """A model as ONNX: in another format it is converted by a child of its own, in the fence."""
    if architecture is None and not _is_converted(path):
        return _copied(path, jobdir, name)
    with tempfile.TemporaryDirectory(prefix="modelpress-") as directory:
        inner = Path(directory).resolve()
        (inner / order.INPUT).mkdir()
        file = _copied(path, inner, "model")
        asked = order.InspectOrder(kind="model", file=file, architecture=architecture)
        (inner / order.ORDER).write_text(asked.model_dump_json())
        ended = attempt.run(inner, limits=Limits(), on_progress=_say, should_stop=stop)
        if ended.how != "succeeded":
            raise Unusable(ended)
        made = ended.artifacts[0].path if ended.artifacts else path
        return _copied(made, jobdir, name).model_copy(update={"name": path.name[:255]})


def _is_converted(path: Path) -> bool:
    """Whether a file is a zip, as torch.export writes, or safetensors: a length below 4 GiB, then JSON."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return head.startswith(_ZIP) or (head[8:] == b"{" and not any(head[4:8]))


def _copied(path: Path, jobdir: Path, name: str) -> order.FileRef:
    target = jobdir / order.INPUT / name
    shutil.copyfile(path, target)
    with target.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return order.FileRef(path=f"{order.INPUT}/{name}", name=path.name[:255], sha256=sha256)


def _stop() -> Callable[[], sandbox.Stop | None]:
    """Asked while the child runs: a signal came, or whoever started this process is gone."""
    signalled: list[int] = []
    parent = os.getppid()

    def note(number: int, frame: FrameType | None) -> None:
        signalled.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)
    return lambda: "cancelled" if signalled or os.getppid() != parent else None


def _deliver(ended: attempt.Ended, out: Path) -> int:
    """Moves what was made to where the user wants it."""
    for artifact in ended.artifacts:
        part = out / f".{artifact.name}.part"
        shutil.copyfile(artifact.path, part)
        part.replace(out / artifact.name)
    if ended.report is not None:
        _write_report(ended.report, out)
    if ended.how == "succeeded":
        return order.EXIT_OK
    sys.stderr.write(ended.log_tail)
    interrupted = _failure(FailureClass.USER_INPUT, ended.how, f"the run was {ended.how}")
    return _fail(ended.failure or interrupted)


def _write_report(report: Report, out: Path) -> None:
    part = out / f".{REPORT}.part"
    part.write_text(report.model_dump_json(by_alias=True, indent=2) + "\n")
    part.replace(out / REPORT)


def _failure(class_: FailureClass, code: str, message: str) -> Failure:
    return Failure(**{"class": class_}, code=code, message=message)


def _fail(failure: Failure) -> int:
    _say(failure)
    return order.EXIT_FAILED


def _say(message: BaseModel) -> None:
    sys.stdout.write(message.model_dump_json(by_alias=True) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
