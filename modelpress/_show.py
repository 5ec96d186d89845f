"""What the CLI shows while it works, on standard error, and the lists it prints, on standard output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from modelpress import resources
from modelpress.spec import inspection, named, recipe
from modelpress.spec.progress import Progress as JobProgress

_NAMES = 3
_POSSIBLE = {True: "yes", False: "no", None: "not known"}
_PIPED_WIDTH = 160  # a program that reads a list wants its words whole

out = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
err = Console(stderr=True)


def say(text: str) -> None:
    """A line on standard error, as it is: never folded, so that a command in it can be copied."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def transfer(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for an upload or download; quiet where nobody watches."""
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def job(name: str) -> Iterator[Callable[[JobProgress], None]]:
    """A bar for a job; a line for each new stage where there is no terminal."""
    if not err.is_terminal:
        yield _Lines()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}", style="dim"),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(f"{name}: waiting", total=1.0, message="")

        def tell(at: JobProgress) -> None:
            bar.update(task, description=_stage(at), completed=at.fraction, message=at.message)

        yield tell


class _Lines:
    """Progress as text: one line for each stage."""

    def __init__(self) -> None:
        self.stage = -1

    def __call__(self, at: JobProgress) -> None:
        if at.stage != self.stage:
            self.stage = at.stage
            say(f"{_stage(at)} ({at.fraction:.0%})")


def _stage(at: JobProgress) -> str:
    return f"{at.stage + 1}/{at.stages} {at.name}"


def jobs(found: Iterable[resources.Job]) -> Table:
    """Jobs, a row each."""
    table = _table("job", "name", "state", "outcome", "done", "created")
    for job in found:
        done = f"{job.progress.fraction:.0%}" if job.progress else ""
        created = f"{job.created_at:%Y-%m-%d %H:%M}" if job.created_at else ""
        table.add_row(job.id, job.name, job.state, job.outcome or "", done, created)
    return table


def keys(found: Iterable[resources.Key]) -> Table:
    """API keys, a row each."""
    table = _table("key", "name", "may", "created", "expires", "last used", "state")
    for key in found:
        moments = (key.created_at, key.expires_at, key.last_used_at)
        dates = [f"{moment:%Y-%m-%d}" if moment else "" for moment in moments]
        state = "revoked" if key.revoked_at else "valid"
        table.add_row(key.id, key.name, "administer" if key.admin else "use", *dates, state)
    return table


def sensitivities(found: Iterable[resources.Sensitivity]) -> Table:
    """Sensitivities, a row each."""
    table = _table("sensitivities", "methods", "layers", "samples", "job", "created")
    for one in found:
        created = f"{one.created_at:%Y-%m-%d %H:%M}" if one.created_at else ""
        figures = f"{one.layers:,}", f"{one.samples:,}"
        table.add_row(one.id, ", ".join(one.methods), *figures, one.job or "", created)
    return table


def steps() -> Iterator[Table]:
    """The kinds of steps and the named recipes of this version."""
    kinds = _table("step", "what it does", "learns from")
    for kind, step in recipe.STEPS.items():
        example = step.model_construct(kind=kind)
        needs = "labels" if example.needs_labels else "samples" if example.needs_data else "nothing"
        kinds.add_row(kind, (step.__doc__ or "").splitlines()[0], f"{needs} by default")
    yield kinds
    recipes = _table("recipe", "steps")
    for name, steps_ in named.NAMED.items():
        recipes.add_row(name, ", then ".join(step.kind for step in steps_.steps))
    yield recipes


def step(kind: str) -> Table:
    """The fields of one kind of step."""
    table = _table("field", "default", "meaning")
    for name, field in recipe.STEPS[kind].model_fields.items():
        default = "required" if field.is_required() else repr(field.default)
        table.add_row(name, default, field.description or "")
    return table


def model(found: resources.Model) -> Iterator[Table]:
    """What is in a model, and what each kind of step could do to it."""
    table = _table("model", found.id)
    for name, value in _facts(found):
        table.add_row(name, Text(value))
    yield table
    if found.inspection is not None and found.inspection.capabilities:
        yield _capabilities(found.inspection.capabilities)


def _facts(found: resources.Model) -> Iterator[tuple[str, str]]:
    yield "name", found.name
    yield "state", found.state
    if found.architecture is not None:
        yield "architecture", found.architecture
    looked = found.inspection
    if looked is None:
        return
    for name, values in (("inputs", looked.inputs), ("outputs", looked.outputs)):
        yield name, ", ".join(f"{v.name} {v.dtype} {list(v.shape)}" for v in values)
    yield "parameters", f"{looked.parameters:,}"
    yield "multiply-accumulates", "unknown" if looked.macs is None else f"{looked.macs:,}"
    yield "operators", ", ".join(f"{count} {op}" for op, count in looked.operators.items())
    yield from (("note", note) for note in looked.notes)


def _capabilities(families: Mapping[str, inspection.Capability]) -> Table:
    table = _table("step", "possible", "what it could do, and what would stay")
    for name, family in families.items():
        if not family.steps:
            table.add_row(f"{name}.*", "no", Text(family.reason))
        for kind, step in family.steps.items():
            lines = [step.reason, *map(_group, step.can)]
            lines += [f"not {_group(group)}" for group in step.cannot]
            table.add_row(kind, _POSSIBLE[step.ok], Text("\n".join(filter(None, lines))))
    return table


def _group(group: inspection.Layers) -> str:
    names = ", ".join(group.names[:_NAMES])
    more = f" and {group.count - _NAMES} more" if group.count > _NAMES else ""
    return f"{names}{more}: {group.what}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(
            column, overflow="fold", no_wrap=index == 0
        )  # what people copy stays whole
    return table
