"""How far the outputs of a changed network are from those of the float one, on the same training samples."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from workers.engine import data
from workers.engine.context import Context
from workers.engine.errors import BadModel, Unsupported
from workers.engine.graph import Graph, execute, program
from workers.engine.measure.quality import Reference
from workers.engine.passes import _moments, _outputs
from workers.engine.passes.analyze._form import Array
from workers.engine.passes.quantize import _affine


@dataclass(frozen=True)
class Effect:
    """What came of a change."""

    error: float
    agreement: float | None
    accuracy: float | None


class Meter:
    """The samples, and what the float network answers to them: computed once."""

    def __init__(
        self, graph: Graph, module: execute.GraphModule, samples: data.Dataset, ctx: Context
    ) -> None:
        self.samples = samples.samples
        self._labels, self._ctx = samples.labels, ctx
        self._inputs = [value.name or "" for value in graph.inputs]
        self._feeds = [
            (len(np.unique(indices)), inputs)
            for indices, inputs in _moments.feeds(graph, samples, ctx)
        ]
        self._outputs_of = _compared(graph, module, self._feeds[0][1])
        self._reference = Reference(self._answers(module, {}, {}))

    @property
    def before(self) -> Effect:
        """The float network beside itself."""
        return self._effect(dict(self._reference.outputs))

    def measure(
        self,
        module: execute.GraphModule,
        weights: Mapping[str, Array] | None = None,
        codes: Mapping[str, _affine.Activation] | None = None,
    ) -> Effect:
        """A module, with other weights in the place of these, and these values rounded to codes."""
        through = {name: _rounding(code) for name, code in (codes or {}).items()}
        return self._effect(self._answers(module, weights or {}, through))

    def ranges(
        self, module: execute.GraphModule, names: Sequence[str]
    ) -> dict[str, _affine.Activation]:
        """Codes of these values between the extremes that they have on the samples.

        Raises:
            BadModel: one of them is not finite.
        """
        low, high = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        for new, inputs in self._feeds:
            with torch.no_grad():
                values = module.values(inputs, names)
            for name in names:
                seen = values[name][:new] if len(values[name]) >= new else values[name]
                low[name] = min(low[name], float(seen.min()))
                high[name] = max(high[name], float(seen.max()))
        for name in names:
            if not np.isfinite([low[name], high[name]]).all():
                raise BadModel(
                    f"'{name}' has values that are not finite on training samples", layer=name
                )
        return {name: _affine.activation(low[name], high[name]) for name in names}

    def _answers(
        self,
        module: execute.GraphModule,
        weights: Mapping[str, Array],
        through: Mapping[str, program.Change],
    ) -> _outputs.Outputs:
        device = self._ctx.device
        instead = {
            n: torch.from_numpy(np.ascontiguousarray(w)).to(device) for n, w in weights.items()
        }
        rows: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in self._outputs_of}
        for new, inputs in self._feeds:
            fed = [
                through[name](x) if name in through else x
                for name, x in zip(self._inputs, inputs, strict=True)
            ]
            with torch.no_grad():
                answers = module.run_with(instead, fed, through)
            for name, slot in self._outputs_of.items():
                rows[name].append(answers[slot][:new].float().cpu().numpy())
        return {name: np.concatenate(parts) for name, parts in rows.items()}

    def _effect(self, found: _outputs.Outputs) -> Effect:
        error = float(np.sqrt(_outputs.error(found, self._reference.outputs)))
        scores = self._reference.scores
        if scores is None:
            return Effect(_finite(error), None, None)
        top = self._reference.top_class(found[scores])
        kept = self._reference.top_class(self._reference.outputs[scores])
        accurate = None if self._labels is None else float((top == self._labels).mean())
        return Effect(_finite(error), float((top == kept).mean()), accurate)


def _compared(
    graph: Graph, module: execute.GraphModule, inputs: Sequence[torch.Tensor]
) -> dict[str, int]:
    """Names and places of the outputs that are floats, one row for each sample.

    Raises:
        Unsupported: there is none.
    """
    with torch.no_grad():
        answers = module(*inputs)
    found = {
        value.name or "": slot
        for slot, (value, answer) in enumerate(zip(graph.outputs, answers, strict=True))
        if _has_rows(answer, len(inputs[0]))
    }
    if not found:
        raise Unsupported(
            "no output of the model holds floats, one row for each sample: there is nothing to compare",
            hint="export the model with its scores as an output",
        )
    return found


def _has_rows(answer: object, rows: int) -> bool:
    if not isinstance(answer, torch.Tensor) or not answer.is_floating_point():
        return False
    return answer.shape[:1] == (rows,)


def _rounding(codes: _affine.Activation) -> program.Change:
    """Values as their codes give them back."""
    scale, zero = float(codes.scale), int(codes.zero)
    low, high = codes.limits

    def through(x: torch.Tensor) -> torch.Tensor:
        return (torch.round(x / scale).add_(zero).clamp_(low, high) - zero) * scale

    return through


def _finite(value: float) -> float:
    """JSON holds no infinity; the largest float stands for it, and for what is no number."""
    return sys.float_info.max if not np.isfinite(value) else value
