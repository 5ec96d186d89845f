"""Weights that become zero."""

from __future__ import annotations

import re
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelpress.spec.prune._pruning import PruningInRounds

Criterion = Literal[
    "large_final",
    "small_final",
    "large_init",
    "magnitude_increase",
    "movement",
    "snip",
    "taylor",
    "wanda",
    "random",
]
Scope = Literal["global", "layer", "row"]

_OF_INITIAL = ("large_init", "magnitude_increase", "movement")
_OF_LOSS = ("snip", "taylor")
_OF_ACTIVATIONS = ("wanda",)


class LayerSparsity(BaseModel):
    """A sparsity of their own for some layers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: str = Field(
        min_length=1,
        max_length=256,
        description="Names of weights or nodes; * and ? match as in file names.",
    )
    sparsity: float = Field(
        ge=0, lt=1, description="Fraction of the weights of each of them that is zero at the end."
    )


class PruneMagnitude(PruningInRounds):
    """Zeroes the weights that a criterion values least, in rounds with fine-tuning between them."""

    paper: ClassVar[str] = (
        "Han, Pool, Tran, Dally: Learning both Weights and Connections (arXiv 1506.02626); criteria of final and initial "
        "weights: Zhou, Lan, Liu, Yosinski: Deconstructing Lottery Tickets (arXiv 1905.01067); snip: Lee, Ajanthan, Torr "
        "(arXiv 1810.02340); taylor: Molchanov et al. (arXiv 1906.10771); wanda: Sun, Liu, Bair, Kolter (arXiv 2306.11695); "
        "schedule cubic: Zhu, Gupta: To prune, or not to prune (arXiv 1710.01878); patterns: Zhou et al.: Learning N:M "
        "Fine-grained Structured Sparse Neural Networks (arXiv 2102.04010)"
    )

    kind: Literal["prune.magnitude"] = "prune.magnitude"
    sparsity: float | None = Field(
        default=None, gt=0, lt=1, description="Fraction of the weights that are zero at the end."
    )
    pattern: str | None = Field(
        default=None,
        pattern=r"^[1-9][0-9]{0,2}:[1-9][0-9]{0,2}$",
        description="Instead of sparsity: '2:4' keeps exactly 2 of each 4 consecutive weights along the inputs of a layer.",
    )
    criterion: Criterion = Field(
        default="large_final",
        description="Which weights are kept: the largest, the smallest, the largest initial ones, those that grew, those that "
        "moved (these three need the initial weights), those the loss is most sensitive to (snip, taylor: need labelled data), "
        "large ones on active inputs (wanda: needs data), or random ones.",
    )
    scope: Scope | None = Field(
        default=None,
        description="Rank all weights together, each layer's own, or each output's own; null is 'row' with wanda, "
        "as in its paper, and 'global' with every other criterion.",
    )
    max_layer_sparsity: float = Field(
        default=0.98,
        gt=0,
        lt=1,
        description="With scope 'global', no layer loses more than this fraction, so that none collapses.",
    )
    overrides: tuple[LayerSparsity, ...] = Field(
        default=(),
        max_length=256,
        description="Layers with a sparsity of their own, the first match of each; `sparsity` or `pattern` is for the others.",
    )
    samples: int = Field(
        default=256,
        ge=1,
        le=100_000,
        description="With snip, taylor and wanda: training samples that are run.",
    )
    schedule: Literal["cubic", "iterative", "one_shot"] = Field(
        default="cubic",
        description="How rounds lead to the target: fast first and slower later, the same fraction of what is left in each, "
        "or all in one.",
    )

    @property
    def needs_data(self) -> bool:
        trains = self.fine_tune is not None
        return trains or self.needs_labels or self.criterion in _OF_ACTIVATIONS

    @property
    def needs_labels(self) -> bool:
        return self.trains_by_labels or self.criterion in _OF_LOSS

    @property
    def needs_models(self) -> tuple[str, ...]:
        own = ("initial",) if self.criterion in _OF_INITIAL else ()
        return tuple(dict.fromkeys((*own, *super().needs_models)))

    @property
    def ranked_in(self) -> Scope:
        """The scope, where none is given that of the criterion's paper."""
        if self.scope is not None:
            return self.scope
        return "row" if self.criterion == "wanda" else "global"

    @property
    def kept_of(self) -> tuple[int, int]:
        """N and M of the pattern N:M; only where there is one."""
        kept, of = map(int, re.findall(r"\d+", self.pattern or ""))
        return kept, of

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.sparsity is None) == (self.pattern is None):
            seen = "none" if self.sparsity is None else "both"
            raise ValueError(f"exactly one of sparsity and pattern is the target; {seen} is given")
        return self

    @model_validator(mode="after")
    def _pattern_prunes(self) -> Self:
        if self.pattern is None:
            return self
        kept, of = self.kept_of
        if kept >= of:
            raise ValueError(f"pattern {self.pattern} keeps every weight: N:M needs N below M")
        if self.scope is not None:
            raise ValueError(
                f"scope '{self.scope}' has no meaning with pattern {self.pattern}, which ranks within each group; leave scope out"
            )
        return self

    @model_validator(mode="after")
    def _one_shot_has_one_round(self) -> Self:
        if self.schedule == "one_shot" and self.rounds > 1:
            raise ValueError(
                f"schedule 'one_shot' has one round, rounds is {self.rounds}: set rounds = 1, or another schedule"
            )
        return self

    @model_validator(mode="after")
    def _cap_allows_target(self) -> Self:
        if (
            self.sparsity is not None
            and self.ranked_in == "global"
            and self.max_layer_sparsity < self.sparsity
        ):
            raise ValueError(
                f"max_layer_sparsity {self.max_layer_sparsity} is below sparsity {self.sparsity}, "
                "which then can't be reached"
            )
        return self
