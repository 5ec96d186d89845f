"""analyze.sensitivity: what the network answers with one layer alone compressed, by each method and amount.

    error(layer, method, amount) = ||y^ - y|| / ||y||      y^: outputs with this layer alone compressed

One module runs all of it, with other weights in the place of its own; only removed channels need another graph. The model stays as it
is. How the table is used, and what it can't tell (layers together cost more than the sum), is in docs/sensitivity.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from modelpress.spec import curves
from modelpress.spec import sensitivity as spec
from modelpress.spec.analyze import AnalyzeSensitivity
from modelpress.spec.sensitivity import METHODS, Measurement, Sensitivity
from workers.engine.context import Context
from workers.engine.errors import Unsupported
from workers.engine.graph import Graph, execute, match, shapes
from workers.engine.passes import _lookahead, _moments, _nothing
from workers.engine.passes.analyze import _form, _methods
from workers.engine.passes.analyze._form import Form, Subject
from workers.engine.passes.analyze._meter import Effect, Meter
from workers.engine.passes.analyze._methods import Change


def apply(graph: Graph, step: AnalyzeSensitivity, ctx: Context) -> Graph:
    """Leaves the table with the context; answers the graph as it was. Raises as `measure`."""
    found = measure(graph, step, ctx)
    ctx.coverage.sensitivity = found
    ctx.coverage.curves += curves.of_sensitivity(found)
    _note(found, ctx)
    return graph


def measure(graph: Graph, step: AnalyzeSensitivity, ctx: Context) -> Sensitivity:
    """The table of a graph.

    Raises:
        Unsupported: there is no layer that could be measured.
        BadModel: an input of a layer is not finite on training samples.
    """
    forms = _forms(graph, step, ctx)
    layers = _layers(forms, step, ctx)
    rows, before, samples = _measure(forms, step, ctx)
    return Sensitivity(
        model_sha256=ctx.model_sha256,
        after=ctx.history,
        seed=ctx.seed,
        samples=samples,
        group_size=step.group_size,
        accuracy=before.accuracy,
        layers=layers,
        rows=tuple(rows),
    )


def survey(graph: Graph, ctx: Context) -> None:
    """Lists the layers that could be measured. Raises as `apply`, or Undetermined."""
    step = AnalyzeSensitivity()
    form = _form.plain(graph, _lookahead.input_shapes(graph), step, ctx)
    for layer in _layers({"plain": form}, step, ctx):
        ctx.touched(layer.name, "what it costs to compress it can be measured")


def _forms(graph: Graph, step: AnalyzeSensitivity, ctx: Context) -> dict[str, Form]:
    """Those that the methods take, the plain one first."""
    assert ctx.train is not None, "the recipe was checked: there is data"
    given = {name: array.shape for name, array in ctx.train.batch([0]).items()}
    input_shapes = shapes.example_shapes(graph, given=given)
    wanted = {_methods.METHODS[method].form for method in step.methods}
    makers = {"plain": _form.plain, "folded": _form.folded}
    return {
        name: make(graph, input_shapes, step, ctx)
        for name, make in makers.items()
        if name in wanted
    }


def _layers(
    forms: Mapping[str, Form], step: AnalyzeSensitivity, ctx: Context
) -> tuple[spec.Layer, ...]:
    """The layers of all forms.

    Raises:
        Unsupported: there are none.
    """
    found: dict[str, spec.Layer] = {}
    skipped: dict[str, str] = {}
    for form in forms.values():
        for subject in form.layers:
            shape = form.weight(subject).shape
            layer = spec.Layer(name=subject.name, kind=subject.users[0].kind, shape=shape)
            found.setdefault(subject.name, layer)
        skipped.update(form.skipped)
    for name, reason in skipped.items():
        ctx.skipped(name, reason)
    if not found:
        raise Unsupported(
            f"analyze.sensitivity found no layer to measure ({_nothing.reasons(ctx) or f'the model has no {_KINDS} with a weight'})",
            hint="shorten exclude" if step.exclude else "leave this step out for this model",
        )
    return tuple(found.values())


_KINDS = ", ".join(match.KINDS)


def _measure(
    forms: Mapping[str, Form], step: AnalyzeSensitivity, ctx: Context
) -> tuple[list[Measurement], Effect, int]:
    first = next(iter(forms.values()))
    meter = Meter(first.graph, first.module, _moments.taken(step.samples, ctx), ctx)
    asked = list(_asked(forms, step, ctx))
    rows: list[Measurement] = []
    for number, (method, form, subject) in enumerate(asked):
        ctx.report(
            number / len(asked), f"{method}: layer {subject.name}, {number + 1} of {len(asked)}"
        )
        amounts = step.amounts_of(method)
        changes = _methods.METHODS[method].changes(form, subject, amounts)
        new = [
            _row(method, subject, amount, change, _effect(meter, form, change))
            for amount, change in changes
        ]
        rows += new
        if left := sorted(set(amounts) - {row.amount for row in new}):
            ctx.note(
                f"{method}: {', '.join(f'{a:g}' for a in left)} of '{subject.name}' changes nothing, the layer is too small"
            )
    if not rows:
        raise Unsupported(
            f"no layer can be compressed by {', '.join(step.methods)} at the amounts asked for",
            hint="ask for other methods or amounts",
        )
    return rows, meter.before, meter.samples


def _asked(
    forms: Mapping[str, Form], step: AnalyzeSensitivity, ctx: Context
) -> Iterator[tuple[spec.Method, Form, Subject]]:
    """What is to be measured; what a method can't do to a layer is noted."""
    for name in step.methods:
        method = _methods.METHODS[name]
        form = forms[method.form]
        for subject in method.subjects(form):
            if reason := method.why_not(form, subject):
                ctx.note(f"{name}: '{subject.name}' was not measured: {reason}")
            else:
                yield name, form, subject


def _effect(meter: Meter, form: Form, change: Change) -> Effect:
    if change.graph is not None:
        module = execute.as_module(change.graph).to(form.ctx.device).eval()
        return meter.measure(module)
    codes = meter.ranges(form.module, change.rounded) if change.rounded else {}
    return meter.measure(form.module, change.weights, codes)


def _row(
    method: spec.Method, subject: Subject, amount: float, change: Change, effect: Effect
) -> Measurement:
    macs = change.macs or (None, None)
    return Measurement(
        layer=subject.name,
        method=method,
        amount=amount,
        joined=subject.joined,
        bytes_before=change.size_bytes[0],
        bytes_after=change.size_bytes[1],
        macs_before=macs[0],
        macs_after=macs[1],
        error=effect.error,
        agreement=effect.agreement,
        accuracy=effect.accuracy,
    )


def _note(found: Sensitivity, ctx: Context) -> None:
    layers = f"{len(found.layers)} layers"
    accurate = (
        ""
        if found.accuracy is None
        else f", where the float network's accuracy is {found.accuracy:.2%}"
    )
    ctx.note(
        f"{len(found.rows):,} measurements of {layers}, one alone compressed in each, on {found.samples:,} training samples{accurate}; the model is as it was"
    )
    for method in found.methods:
        worst = max((r for r in found.rows if r.method == method), key=lambda r: r.error)
        ctx.note(
            f"{method}: outputs move most with '{worst.layer}', by {worst.error:.2%} of their norm at {worst.amount:g} ({METHODS[method].unit})"
        )
