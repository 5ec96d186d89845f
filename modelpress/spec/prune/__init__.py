"""Steps that remove weights: one file for each method."""

from modelpress.spec.prune._controls import Controls
from modelpress.spec.prune.channels import LayerFraction, PruneChannels, SparseTraining
from modelpress.spec.prune.magnitude import LayerSparsity, PruneMagnitude

__all__ = [
    "Controls",
    "LayerFraction",
    "LayerSparsity",
    "PruneChannels",
    "PruneMagnitude",
    "SparseTraining",
]
