"""Average pooling of the picture's tokens: the plain rival that selections have to beat (VTC-Bench, 2510.07143)."""

from __future__ import annotations

from typing import ClassVar, Literal

from planner.policies.before_decoder import BeforeDecoder
from planner.schedule import Keep, Select


class Pool(BeforeDecoder):
    """The token grid at a lower resolution: as many cells as the budget allows, each one token, the mean of its tokens.

    A quarter is 2 by 2 pooling; any other budget is met exactly, by cells of nearly one size. A cell stands at the
    position of its middle token. ``merge=none`` keeps the middle tokens as they are: a regular sample of the grid.
    """

    name: ClassVar[str] = "pool"
    summary: ClassVar[str] = "before the decoder pool the token grid: a lower resolution (a control)"

    merge: Literal["cell", "none"] = "cell"

    def select(self, keep: Keep) -> Select:
        return Select(rank_by="grid", keep=keep, merge=self.merge)
