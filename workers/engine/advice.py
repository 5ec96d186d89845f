"""What to try next, from what a job measured. A rule is a function of one step's results; RULES is all of them.

No rule guesses: each names the figure that it goes by, and the change it proposes is to a recipe that stays valid.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from modelpress.spec.advice import Advice
from modelpress.spec.prune import PruneChannels, PruneMagnitude
from modelpress.spec.quantize import (
    QuantizeBits,
    QuantizeCluster,
    QuantizeInt8,
    QuantizeQat,
)
from modelpress.spec.report import LayerError, Report, Stage
from modelpress.spec.step import FineTune, Step
from workers.engine.errors import EngineError
from workers.engine.verdict import FASTER_BELOW

LOST = 0.005
"""A drop of accuracy that is worth a second try: half a point."""
SPARED = 0.001
"""A smaller drop leaves room for more."""
DOMINATES = 0.5
"""A layer with more than this share of the squared error is what to look at first."""
_LOSSY = ("prune", "quantize", "rewrite")
"""Families whose changes to a layer are errors; what training changes is meant."""
_TAUGHT: dict[str, Any] = {"distill": {}}
CODABLE = 0.8
"""An entropy bound below this part of the file is worth a packed file."""


@dataclass(frozen=True)
class Case:
    """A step of the recipe and what was measured around it."""

    report: Report
    index: int
    step: Step
    before: Stage
    after: Stage

    @property
    def has_data(self) -> bool:
        """Whether the job has samples."""
        return self.report.data is not None

    @property
    def has_labels(self) -> bool:
        """Whether accuracy was measured."""
        quality = self.after.quality
        return self.has_data and quality is not None and quality.accuracy is not None

    @property
    def is_last(self) -> bool:
        """Whether no step follows in the recipe."""
        return self.index == len(self.report.recipe.steps) - 1

    @property
    def lost(self) -> float | None:
        """The fall of accuracy in this step, or the share of answers that changed; null without data."""
        now, was = self.after.quality, self.before.quality
        if not self.has_data or now is None or was is None:
            return None
        if now.accuracy is not None and was.accuracy is not None:
            return was.accuracy - now.accuracy
        effect = self.after.effect
        return None if effect is None or effect.agreement is None else 1.0 - effect.agreement

    @property
    def lost_words(self) -> str:
        """The same in words."""
        points = f"{100 * (self.lost or 0.0):.2f} points"
        return (
            f"lost {points} of accuracy" if self.has_labels else f"changed {points} of the answers"
        )

    @property
    def lost_much(self) -> bool:
        """Whether that is worth a second try."""
        return self.lost is not None and self.lost > LOST

    @property
    def worst(self) -> LayerError | None:
        """The layer that makes most of the error; null where none stands out."""
        measured = [layer for layer in self.after.layers if layer.share is not None]
        worst = max(measured, key=lambda layer: layer.share or 0.0, default=None)
        stands_out = worst is not None and len(measured) > 1 and (worst.share or 0.0) > DOMINATES
        return worst if stands_out else None

    def set(self, text: str, **fields: Any) -> Advice:
        """To change fields of the step."""
        return Advice(step=self.index, text=f"{self.step.kind} {text}", put="set", fragment=fields)


Rule = Callable[[Case], Iterator[Advice]]


def of(report: Report) -> tuple[Advice, ...]:
    """All that the rules have to say of the finished steps, in their order."""
    steps, stages = report.recipe.steps, report.stages
    cases = [
        Case(report, after.step, steps[after.step], before, after)
        for before, after in pairwise(stages)
        if after.step is not None
    ]
    return tuple(advice for case in cases for rule in RULES for advice in rule(case))


def of_failure(index: int, error: EngineError) -> Advice:
    """What a step that changed nothing says itself."""
    text = f"{error.message}; {error.hint}" if error.hint else error.message
    return Advice(step=index, text=text, put="remove")


def spare_the_worst(case: Case) -> Iterator[Advice]:
    """One layer makes most of the error: what it alone may have instead."""
    worst, family = case.worst, case.step.kind.partition(".")[0]
    if not case.lost_much or worst is None or family not in _LOSSY:
        return
    why = f"{case.lost_words}, and {worst.layer} alone makes {worst.share:.0%} of the error"
    match case.step:
        case QuantizeCluster(overrides=known):
            more = {"layers": _pattern(worst.layer), "bits": 8}
            yield case.set(f"{why}: give it 8 bits", overrides=[more, *_dumped(known)])
        case PruneMagnitude(sparsity=float(sparsity), overrides=known):
            more = {"layers": _pattern(worst.layer), "sparsity": round(sparsity / 2, 4)}
            yield case.set(f"{why}: zero half as much of it", overrides=[more, *_dumped(known)])
        case QuantizeBits(mixed=None) if case.has_labels:
            mixed = {"choices": [4, 6, 8], "max_accuracy_drop": LOST}
            yield case.set(f"{why}: let measured errors choose bits", bits=4, mixed=mixed)
        case _:
            names = [*case.step.exclude, _pattern(worst.layer)]
            yield case.set(f"{why}: leave it as it was", exclude=names)


def refine_int8(case: Case) -> Iterator[Advice]:
    """What 8-bit integers have not tried yet, the cheapest first."""
    step = case.step
    if not isinstance(step, QuantizeInt8) or not case.lost_much:
        return
    lost = case.lost_words
    if not step.per_channel:
        yield case.set(f"{lost} with one scale per tensor: one per channel", per_channel=True)
    elif step.mode == "dynamic":
        yield case.set(f"{lost} with ranges taken at each run: calibrate them", mode="static")
    elif step.calibration == "minmax":
        yield case.set(f"{lost} with ranges of all values seen: least errors", calibration="mse")
    elif not (step.equalize and step.bias_correction):
        text = f"{lost}: balance channels and correct biases"
        yield case.set(text, equalize=True, bias_correction=True)
    elif step.adaround is None:
        yield case.set(f"{lost}, rounding to nearest: learn the rounding", adaround={})


def train_int8(case: Case) -> Iterator[Advice]:
    """Training with rounding in it recovers what calibration can't."""
    step = case.step
    if isinstance(step, QuantizeInt8) and step.mode == "static" and case.lost_much:
        fragment: dict[str, Any] = {"kind": "quantize.qat", "target": step.target}
        if step.exclude:
            fragment["exclude"] = list(step.exclude)
        text = f"quantize.int8 {case.lost_words}: quantize.qat trains weights and step sizes"
        yield Advice(step=case.index, text=text, put="instead", fragment=fragment)


def refine_bits(case: Case) -> Iterator[Advice]:
    """What few bits have not tried yet: calibrated rounding, smaller groups, more bits."""
    step = case.step
    if not isinstance(step, QuantizeBits) or not case.lost_much:
        return
    if step.method == "rtn":
        yield case.set(f"{case.lost_words}, rounding to nearest: use data", method="gptq")
    elif step.group_size is None or step.group_size > 32:
        yield case.set(f"{case.lost_words}: let fewer inputs share a scale", group_size=32)
    elif step.mixed is None and step.bits < 8:
        yield case.set(f"{case.lost_words} with {step.bits} bits: more", bits=step.bits + 1)


def train_what_is_left(case: Case) -> Iterator[Advice]:
    """A step that can train and did not, by labels or else by the uploaded model's answers."""
    step = case.step
    if not case.lost_much:
        return
    if isinstance(step, QuantizeQat):
        training = {**step.training.model_dump(), "epochs": 2 * step.training.epochs}
        yield case.set(f"{case.lost_words}: train twice as long", training=training)
    elif "fine_tune" in type(step).model_fields and not _trains(step):
        taught = {} if case.has_labels or not _can_be_taught(step) else {"recover": _TAUGHT}
        if case.has_labels or taught:
            text = f"{case.lost_words} without training: fine-tune what is left"
            yield case.set(text, fine_tune={"epochs": 3}, **taught)


def learn_from_the_upload(case: Case) -> Iterator[Advice]:
    """A step that trained by labels alone."""
    if case.lost_much and _trains(case.step) and _can_be_taught(case.step):
        text = f"{case.lost_words}, trained by labels: learn the uploaded model's answers too"
        yield case.set(text, recover=_TAUGHT)


def go_further(case: Case) -> Iterator[Advice]:
    """Pruning that cost next to nothing."""
    step = case.step
    if case.lost is None or case.lost > SPARED or not case.has_labels:
        return
    spared = f"{case.lost_words}: there is room for more"
    match step:
        case PruneMagnitude(sparsity=float(sparsity)):
            more = round((1 + sparsity) / 2, 4)
            cap = max(more, step.max_layer_sparsity)
            yield case.set(spared, sparsity=more, max_layer_sparsity=cap)
        case PruneChannels(macs_ratio=float(ratio)):
            yield case.set(spared, macs_ratio=round(1.5 * ratio, 3))


def remove_channels(case: Case) -> Iterator[Advice]:
    """Zeros that made nothing faster."""
    step, was, now = case.step, case.before.latency.ratio, case.after.latency.ratio
    channels = any(isinstance(other, PruneChannels) for other in case.report.recipe.steps)
    if not isinstance(step, PruneMagnitude) or channels or now < was * FASTER_BELOW:
        return
    fragment: dict[str, Any] = {"kind": "prune.channels", "macs_ratio": 2.0}
    if case.has_labels:
        fragment["fine_tune"] = {"epochs": 3}
    text = (
        f"prune.magnitude made no run faster (x{was:.2f} of the upload's time before, x{now:.2f} after): "
        "dense kernels multiply zeros too; whole channels that go make a network faster"
    )
    yield Advice(step=case.index, text=text, put="before", fragment=fragment)


def keep_floats(case: Case) -> Iterator[Advice]:
    """Integers that made a run slower: the same size without them."""
    was, now = case.before.latency.ratio, case.after.latency.ratio
    if isinstance(case.step, QuantizeInt8 | QuantizeQat) and now > was / FASTER_BELOW:
        text = (
            f"{case.step.kind} made a run slower on this CPU, x{was:.2f} of the upload's time before, x{now:.2f} after: "
            "weights alone in 8 bits are as small and compute in float"
        )
        fragment = {"kind": "quantize.bits", "bits": 8}
        yield Advice(step=case.index, text=text, put="instead", fragment=fragment)


def quantize(case: Case) -> Iterator[Advice]:
    """A result whose weights are still floats of 32 bits."""
    if case.is_last and case.step.leaves_trainable and case.after.size.bits_per_parameter >= 32:
        text = "weights still take 32 bits each: 8 take a quarter"
        kind = {"kind": "quantize.int8", "mode": "static" if case.has_data else "dynamic"}
        yield Advice(step=case.index, text=text, put="after", fragment=kind)


def pack(case: Case) -> Iterator[Advice]:
    """A file that is larger than what it says."""
    size = case.after.size
    if not case.is_last or not case.step.changes_model:
        return
    if size.entropy_bytes < CODABLE * size.file_bytes:
        text = (
            f"the file has {size.file_bytes:,} bytes, and what its weights say {size.entropy_bytes:,} (order-0 entropy): "
            "a packed file comes near that, without loss"
        )
        yield Advice(step=case.index, text=text, put="after", fragment={"kind": "code.entropy"})


RULES: tuple[Rule, ...] = (
    spare_the_worst,
    refine_int8,
    train_int8,
    refine_bits,
    train_what_is_left,
    learn_from_the_upload,
    go_further,
    remove_channels,
    keep_floats,
    quantize,
    pack,
)


def _trains(step: Step) -> bool:
    """Whether the step trains its result."""
    return any(
        isinstance(getattr(step, name, None), FineTune) for name in ("fine_tune", "training")
    )


def _can_be_taught(step: Step) -> bool:
    """Whether training may go by teachers, and does not."""
    can = "recover" in type(step).model_fields and getattr(step, "recover", None) is None
    return can and not getattr(step, "distill", None)


def _pattern(name: str) -> str:
    """What matches this name alone."""
    return glob.escape(name)


def _dumped(overrides: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [override.model_dump() for override in overrides]
