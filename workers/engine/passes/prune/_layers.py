"""Layers and their channels: which the recipe names, why channels stay, what became of each."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from modelpress.spec.prune import PruneChannels
from workers.engine.context import Context
from workers.engine.errors import NothingChanged
from workers.engine.graph import Graph, match
from workers.engine.graph.channels.plan import Family, Key, Plan

_EXCLUDED = "excluded by the recipe"
_LISTED = 5


@dataclass(frozen=True)
class Before:
    """The sizes that weights had."""

    sizes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, graph: Graph) -> Before:
        """Of a graph as it is now."""
        return cls({name: array.shape for name, array in graph.parameters().items()})


def free(graph: Graph, plan: Plan, step: PruneChannels) -> list[Family]:
    """The families of which the recipe excludes no weight."""
    return [
        family
        for family in plan.families
        if not any(_is_excluded(graph, name, step) for name, _ in family.axes)
    ]


def overridden(graph: Graph, families: Sequence[Family], step: PruneChannels) -> dict[Key, float]:
    """The fraction of each family that has its own: a pattern names a layer or weight whose outputs its channels are.

    Raises:
        NothingChanged: an override is the first match of no family.
    """
    own: dict[Key, float] = {}
    inputs = {(layer.weight, layer.in_axis) for layer in match.layers(graph)}
    names = {family.key: list(_names(graph, family, inputs)) for family in families}
    for override in step.overrides:
        matched = {
            key
            for key, known in names.items()
            if any(fnmatchcase(name, override.layers) for name in known)
        }
        if not matched - set(own):
            raise NothingChanged(_without_effect(override.layers, bool(matched), names))
        own.update({key: override.fraction for key in matched if key not in own})
    return own


def reasons(graph: Graph, plan: Plan, step: PruneChannels) -> dict[str, str]:
    """Why the outputs of a layer stay, by weight; '' where they may go."""
    found = {}
    for layer in match.layers(graph):
        if _is_excluded(graph, layer.weight, step):
            found[layer.weight] = _EXCLUDED
        else:
            found[layer.weight] = plan.reason(layer.weight, layer.out_axis)
    for name in match.not_layers(graph):
        found[name] = _EXCLUDED if _is_excluded(graph, name, step) else _reason(plan, name)
    return found


def limits(found: Mapping[str, str]) -> str:
    """What keeps channels in place, for the end of a message; '' where nothing does."""
    kept = [f"'{name}': {reason}" for name, reason in found.items() if reason]
    if not kept:
        return ""
    more = f" and {len(kept) - _LISTED} more" if len(kept) > _LISTED else ""
    return f"; these keep their channels: {'; '.join(kept[:_LISTED])}{more}"


def no_channels(graph: Graph, plan: Plan, step: PruneChannels) -> str:
    """Says that nothing can go, and why."""
    listed = [f"'{n}': {why}" for n, why in reasons(graph, plan, step).items() if why][:10]
    return "prune.channels found no channel that can go. " + "; ".join(
        listed or ["the model has no convolution or matrix product"]
    )


def foresee(graph: Graph, plan: Plan, step: PruneChannels, ctx: Context) -> None:
    """Reports what could become of each layer: channels that go together are one entry."""
    outputs = {(layer.weight, layer.out_axis) for layer in match.layers(graph)}
    for family in free(graph, plan, step):
        makers = dict.fromkeys(name for name, axis in family.axes if (name, axis) in outputs)
        names = list(makers) or [family.axes[0][0]]
        ctx.touched(_joined(names), f"{len(family.classes)} channels")
    for name, reason in reasons(graph, plan, step).items():
        if reason:
            ctx.skipped(name, reason)


def _joined(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"


def cover(
    graph: Graph,
    before: Before,
    found: Mapping[str, str],
    totals: Mapping[Key, int],
    left: Plan,
    ctx: Context,
) -> None:
    """Reports what became of each layer, and of all channels together."""
    axes = {layer.weight: (layer.out_axis, layer.in_axis) for layer in match.layers(graph)}
    for name, reason in found.items():
        was, now = before.sizes[name], graph.weight(name).shape
        if was == now:
            ctx.skipped(name, reason or "none of its channels had to go, or round_to kept them")
        elif name not in axes:
            ctx.touched(name, f"{list(was)} -> {list(now)}")
        else:
            ctx.touched(name, _change(was, now, *axes[name]))
            if reason and was[axes[name][0]] == now[axes[name][0]]:
                ctx.note(f"outputs of '{name}' stay: {reason}")
    _note_channels(totals, left, ctx)


def _note_channels(totals: Mapping[Key, int], left: Plan, ctx: Context) -> None:
    whole, now = sum(totals.values()), sum(len(f.classes) for f in left.families)
    ctx.note(f"{whole - now:,} of {whole:,} channels that may go are gone ({1 - now / whole:.1%})")


def note_attention(plan: Plan, step: PruneChannels, ctx: Context) -> None:
    """Says where what was chosen for attention has no effect."""
    if step.attention == "auto":
        return
    if not plan.cuts:
        ctx.note(f"attention = '{step.attention}' has no effect: nothing cuts channels into heads")
        return
    held = plan.held(("heads", "width") if step.attention == "both" else (step.attention,))
    for choice in dict.fromkeys(choice for choice, _ in held):
        listed = [f"{node} ({why})" for (known, node), why in held.items() if known == choice]
        ctx.note(f"attention: no {choice} can go at {_joined(listed)}")


def note_statistics(plan: Plan, left: Plan, ctx: Context) -> None:
    """Says which statistics are over fewer channels now (docs/adr/0009)."""
    was, now = plan.statistics, left.statistics
    narrower = [f"{n} over {now.get(n, 1)} of {was[n]}" for n in was if now.get(n, 1) < was[n]]
    if narrower:
        ctx.note(
            f"statistics are over fewer channels, which changes what the network computes even where those were zero: "
            f"{_joined(narrower)}; normalized = 'keep' keeps them"
        )


def _change(was: tuple[int, ...], now: tuple[int, ...], out_axis: int, in_axis: int) -> str:
    """'64 -> 32 channels, 16 -> 8 inputs'; what stays is left out."""
    parts = []
    if was[out_axis] != now[out_axis]:
        parts.append(f"{was[out_axis]} -> {now[out_axis]} channels")
    if was[in_axis] != now[in_axis]:
        parts.append(f"{was[in_axis]} -> {now[in_axis]} inputs")
    return ", ".join(parts)


def _names(graph: Graph, family: Family, inputs: Container[tuple[str, int]]) -> Iterator[str]:
    """Weights of which the family is no input, and the nodes that read them. inputs: weights and the axes of their inputs."""
    for name, axis in family.axes:
        if (name, axis) not in inputs:
            yield name
            yield from _readers(graph, name)


def _readers(graph: Graph, weight: str) -> list[str]:
    return [use.node.name or "" for use in graph.model.graph.initializers[weight].uses()]


def _is_excluded(graph: Graph, weight: str, step: PruneChannels) -> bool:
    return step.excludes(weight, *_readers(graph, weight))


def _reason(plan: Plan, name: str) -> str:
    """Why a weight that is no layer's keeps all its axes; '' where one of them may lose elements."""
    found = [plan.reason(name, axis) for known, axis in plan.axes if known == name]
    return "" if "" in found else next(iter(found), "nothing that is known reads it")


def _without_effect(pattern: str, is_later: bool, names: Mapping[Key, list[str]]) -> str:
    if is_later:
        return f"override '{pattern}' has no effect: earlier overrides match all its layers already"
    known = [f"'{names_of[0]}'" for names_of in names.values() if names_of]
    more = f" and {len(known) - 32} more" if len(known) > 32 else ""
    return f"override '{pattern}' matches no layer that can lose channels; there are {', '.join(known[:32])}{more}"
