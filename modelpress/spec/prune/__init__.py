"""Steps that remove weights: one file for each method."""

from modelpress.spec.prune.channels import PruneChannels
from modelpress.spec.prune.magnitude import LayerSparsity, PruneMagnitude

__all__ = ["LayerSparsity", "PruneChannels", "PruneMagnitude"]
