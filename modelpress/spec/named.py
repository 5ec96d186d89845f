"""Recipes with a name, for people who want a result before they read about steps."""

from __future__ import annotations

from typing import Any

from modelpress.spec.analyze import AnalyzeSensitivity
from modelpress.spec.code import CodeEntropy
from modelpress.spec.distill import Distill, Recover
from modelpress.spec.prune import PruneChannels, PruneMagnitude
from modelpress.spec.quantize import (
    CentroidTraining,
    QatTraining,
    QuantizeBits,
    QuantizeCluster,
    QuantizeInt8,
    QuantizeQat,
)
from modelpress.spec.recipe import Recipe
from modelpress.spec.step import FineTune

_TAUGHT = Recover(distill=Distill())
"""By the uploaded model, and by labels where there are any."""


def _narrower(macs_ratio: float, rounds: int) -> PruneChannels:
    return PruneChannels(
        macs_ratio=macs_ratio,
        criterion="taylor",
        scope="global",
        rounds=rounds,
        fine_tune=FineTune(epochs=4),
        recover=_TAUGHT,
    )


NAMED: dict[str, Recipe] = {
    "balanced": Recipe(
        name="balanced",
        steps=(
            _narrower(2, rounds=2),
            QuantizeCluster(
                bits=5, conv_bits=5, fine_tune=CentroidTraining(epochs=3), recover=_TAUGHT
            ),
            CodeEntropy(),
        ),
    ),
    "deep-compression": Recipe(
        name="deep-compression",
        steps=(
            PruneMagnitude(
                sparsity=0.96,
                max_layer_sparsity=0.975,
                rounds=8,
                fine_tune=FineTune(epochs=8),
                recover=_TAUGHT,
            ),
            QuantizeCluster(
                bits=3,
                conv_bits=4,
                bias_bits=4,
                fine_tune=CentroidTraining(epochs=10),
                recover=_TAUGHT,
            ),
            CodeEntropy(),
        ),
    ),
    "fast": Recipe(name="fast", steps=(_narrower(4, rounds=3),)),
    "half-channels": Recipe(
        name="half-channels",
        steps=(
            PruneChannels(
                macs_ratio=2,
                criterion="taylor",
                scope="global",
                rounds=2,
                fine_tune=FineTune(epochs=3),
            ),
        ),
    ),
    "int8": Recipe(name="int8", steps=(QuantizeInt8(),)),
    "int8-dynamic": Recipe(name="int8-dynamic", steps=(QuantizeInt8(mode="dynamic"),)),
    "prune-int8": Recipe(
        name="prune-int8",
        steps=(
            PruneMagnitude(sparsity=0.8, rounds=4, fine_tune=FineTune(epochs=4)),
            QuantizeInt8(),
        ),
    ),
    "sensitivity": Recipe(name="sensitivity", steps=(AnalyzeSensitivity(),)),
    "small": Recipe(
        name="small",
        steps=(
            QuantizeBits(
                bits=4,
                method="gptq",
                group_size=None,
                act_order=True,
                sequential=True,
                bias_correction=True,
            ),
            CodeEntropy(),
        ),
    ),
    "tiny": Recipe(
        name="tiny",
        steps=(
            _narrower(4, rounds=3),
            PruneMagnitude(sparsity=0.75, rounds=4, fine_tune=FineTune(epochs=4), recover=_TAUGHT),
            QuantizeCluster(
                bits=4, conv_bits=4, fine_tune=CentroidTraining(epochs=4), recover=_TAUGHT
            ),
            CodeEntropy(),
        ),
    ),
    "tiny-int8": Recipe(
        name="tiny-int8",
        steps=(
            _narrower(4, rounds=3),
            PruneMagnitude(sparsity=0.75, rounds=4, fine_tune=FineTune(epochs=4), recover=_TAUGHT),
            QuantizeQat(training=QatTraining(epochs=4), recover=_TAUGHT),
            CodeEntropy(),
        ),
    ),
}


def resolve(value: Any) -> Any:
    """Replaces the name of a recipe by the recipe; leaves everything else alone.

    Raises:
        ValueError: there is no recipe of that name.
    """
    if not isinstance(value, str):
        return value
    if value not in NAMED:
        raise ValueError(
            f"there is no recipe {value[:80]!r}; the names are {', '.join(sorted(NAMED))}"
        )
    return NAMED[value]
