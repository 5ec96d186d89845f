"""Steps that remove weights: one file for each method."""

from modelpress.spec.prune._controls import Controls
from modelpress.spec.prune._pruning import Pruning
from modelpress.spec.prune.channels import LayerFraction, PruneChannels, SparseTraining
from modelpress.spec.prune.lottery import Moment, PruneLottery, TicketControls, TicketTraining
from modelpress.spec.prune.magnitude import LayerSparsity, PruneMagnitude
from modelpress.spec.prune.supermask import MaskTraining, PruneSupermask

__all__ = [
    "Controls",
    "LayerFraction",
    "LayerSparsity",
    "MaskTraining",
    "Moment",
    "PruneChannels",
    "PruneLottery",
    "PruneMagnitude",
    "PruneSupermask",
    "Pruning",
    "SparseTraining",
    "TicketControls",
    "TicketTraining",
]
