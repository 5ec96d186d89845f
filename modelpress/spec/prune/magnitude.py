"""Weights that become zero."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelpress.spec.prune import _rounds
from modelpress.spec.step import FineTune, Step


class PruneMagnitude(Step):
    """Zeroes the weights of smallest magnitude, in rounds with fine-tuning between them."""

    paper: ClassVar[str] = (
        "Han, Pool, Tran, Dally: Learning both Weights and Connections (arXiv 1506.02626); "
        "schedule: Zhu, Gupta: To prune, or not to prune (arXiv 1710.01878)"
    )

    kind: Literal["prune.magnitude"] = "prune.magnitude"
    sparsity: float = Field(
        gt=0, lt=1, description="Fraction of the weights that are zero at the end."
    )
    scope: Literal["global", "layer"] = Field(
        default="global",
        description="Rank all weights together, or each layer's own to the same fraction.",
    )
    max_layer_sparsity: float = Field(
        default=0.98,
        gt=0,
        lt=1,
        description="With scope 'global', no layer loses more than this fraction, so that none collapses.",
    )
    rounds: int = Field(
        default=1, ge=1, le=100, description="Rounds of prune and fine-tune, on the cubic schedule."
    )
    fine_tune: FineTune | None = Field(
        default=None, description="Training after each round; null prunes once and trains nothing."
    )

    @property
    def needs_data(self) -> bool:
        return self.fine_tune is not None

    @property
    def needs_labels(self) -> bool:
        return self.fine_tune is not None

    @model_validator(mode="after")
    def _rounds_train(self) -> Self:
        _rounds.check(self.rounds, self.fine_tune)
        return self

    @model_validator(mode="after")
    def _cap_allows_target(self) -> Self:
        if self.scope == "global" and self.max_layer_sparsity < self.sparsity:
            raise ValueError(
                f"max_layer_sparsity {self.max_layer_sparsity} is below sparsity {self.sparsity}, "
                "which then can't be reached"
            )
        return self
