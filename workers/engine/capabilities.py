"""What each kind of step could do to a model, asked of the passes themselves."""

from __future__ import annotations

import importlib
import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from modelpress.spec.inspection import Capability, Layers, StepCapability
from modelpress.spec.recipe import STEPS
from workers.engine import context, passes
from workers.engine.context import Context, Coverage
from workers.engine.errors import EngineError
from workers.engine.graph import Graph
from workers.engine.passes._lookahead import Undetermined

FAMILIES = ("analyze", "prune", "distill", "quantize", "rewrite", "dynamic", "code")
LIMIT_S = 30.0
"""For one kind of step."""
MAX_GROUPS, MAX_NAMES, MAX_TEXT = 16, 16, 300

_log = logging.getLogger(__name__)


class _Late(BaseException):
    """Time is up; no handler of a pass may take it for an error of its own."""


def survey(
    graph: Graph, work: Path, report: context.Report = context.silent
) -> dict[str, Capability]:
    """Asks every pass what it could do to the graph, which is left as it is. Nothing that a pass does here rejects a model."""
    found: dict[str, dict[str, StepCapability]] = {family: {} for family in FAMILIES}
    for index, kind in enumerate(STEPS):
        report(index / len(STEPS), f"asking what {kind} could do")
        found[kind.split(".")[0]][kind] = _ask(kind, graph, work)
    return {family: _family(family, steps) for family, steps in found.items()}


def _family(name: str, steps: Mapping[str, StepCapability]) -> Capability:
    if not steps:
        return Capability(ok=False, reason=f"this version has no step of family '{name}' yet")
    if any(step.ok for step in steps.values()):
        return Capability(ok=True, steps=dict(steps))
    unknown = any(step.ok is None for step in steps.values())
    reasons = "; ".join(dict.fromkeys(step.reason for step in steps.values()))
    return Capability(ok=None if unknown else False, reason=_cut(reasons), steps=dict(steps))


def _ask(kind: str, graph: Graph, work: Path) -> StepCapability:
    ctx = Context(device=torch.device("cpu"), threads=1, seed=0, source=graph, work=work)
    ok, reason = _answer(kind, graph, ctx)
    return StepCapability(
        ok=ok, reason=_cut(reason), can=_can(ctx.coverage), cannot=_cannot(ctx.coverage)
    )


def _answer(kind: str, graph: Graph, ctx: Context) -> tuple[bool | None, str]:
    look: Callable[[Graph, Context], None] | None
    look = getattr(importlib.import_module(f"{passes.__name__}.{kind}"), "survey", None)
    if look is None:
        return None, f"{kind} can't tell before it runs"
    try:
        with _at_most(LIMIT_S):
            look(graph.clone(), ctx)
    except EngineError as e:
        return False, e.message
    except Undetermined as e:
        return None, str(e)
    except _Late:
        return None, f"not determined within {LIMIT_S:g} s: a job can tell"
    except Exception as e:
        _log.exception("asking %s", kind)
        return None, f"not determined: {type(e).__name__}"
    return bool(ctx.coverage.touched), ""


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises _Late in the main thread when time is up; again each second, should a destructor swallow it."""

    def stop(number: int, frame: object) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _can(coverage: Coverage) -> tuple[Layers, ...]:
    return _grouped((t.change, t.layer) for t in coverage.touched)


def _cannot(coverage: Coverage) -> tuple[Layers, ...]:
    return _grouped((s.reason, s.layer) for s in coverage.skipped)


def _grouped(pairs: Iterable[tuple[str, str]]) -> tuple[Layers, ...]:
    """Layers with the same text together, the largest groups first; what is over the limit is counted only."""
    texts: dict[str, dict[str, None]] = {}
    for what, layer in pairs:
        texts.setdefault(_cut(what), {})[_cut(layer)] = None
    groups = sorted(texts.items(), key=lambda group: -len(group[1]))
    shown = [_layers(what, list(names)) for what, names in groups[:MAX_GROUPS]]
    rest = [name for _, names in groups[MAX_GROUPS:] for name in names]
    if rest:
        shown.append(_layers(f"of {len(groups) - MAX_GROUPS} other kinds", rest))
    return tuple(shown)


def _layers(what: str, names: list[str]) -> Layers:
    return Layers(what=what, names=tuple(names[:MAX_NAMES]), count=len(names))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
