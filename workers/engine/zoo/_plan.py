"""How a paper's network becomes one of another width, depth and input size."""

from __future__ import annotations

import math
from dataclasses import dataclass

_LEAST = 4
"""Height and width that the last map keeps where halvings are left out."""
_KEPT = 0.9
"""Share of the channels wanted that rounding leaves at least (MobileNet v2 and GhostNet)."""


@dataclass(frozen=True)
class Plan:
    """What is asked of a builder."""

    width: float
    depth: float
    classes: int
    size: int
    """Of the shorter side of the image."""

    def channels(self, paper: int, divisor: int = 8) -> int:
        """The paper's channels at this width: the nearest multiple of `divisor`, not below 90 % of what is wanted."""
        wanted = paper * self.width
        rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
        return rounded if rounded >= _KEPT * wanted else rounded + divisor

    def repeats(self, paper: int) -> int:
        """How often a block of the paper is repeated at this depth."""
        return max(1, round(paper * self.depth))

    def strides(self, halvings: int) -> list[int]:
        """The stride at each place where the paper halves the map, in order: 1 for the first ones that the image is too small for."""
        possible = max(0, math.floor(math.log2(self.size / _LEAST)))
        kept = min(halvings, possible)
        return [1] * (halvings - kept) + [2] * kept
