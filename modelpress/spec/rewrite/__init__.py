"""Steps that put cheaper layers in the place of a network's own: one file for each method."""

from modelpress.spec.rewrite._rewriting import Rewriting, Target
from modelpress.spec.rewrite.blocks import RewriteBlocks
from modelpress.spec.rewrite.clean import RewriteClean
from modelpress.spec.rewrite.depthwise import RewriteDepthwise
from modelpress.spec.rewrite.low_rank import LayerRank, RewriteLowRank

__all__ = [
    "LayerRank",
    "RewriteBlocks",
    "RewriteClean",
    "RewriteDepthwise",
    "RewriteLowRank",
    "Rewriting",
    "Target",
]
