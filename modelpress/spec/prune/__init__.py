"""Steps that remove weights: one file for each method."""

from modelpress.spec.prune.channels import PruneChannels
from modelpress.spec.prune.magnitude import PruneMagnitude

__all__ = ["PruneChannels", "PruneMagnitude"]
