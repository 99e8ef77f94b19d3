"""A smaller picture: the plain rival that selections have to beat (VTC-Bench, 2510.07143)."""

from __future__ import annotations

from typing import ClassVar

from planner.policies.before_decoder import BeforeDecoder
from planner.schedule import Keep, Select


class Resize(BeforeDecoder):
    """Images have fewer pixels, so that as many visual tokens come of them as the budget allows.

    In families that take images of any size (Qwen-VL, GLM-V) the vision encoder sees the smaller image and saves too;
    each token stands at the position of the middle of what it shows. Elsewhere, and for videos, the encoder's output is
    pooled, as by `pool`.
    """

    name: ClassVar[str] = "resize"
    summary: ClassVar[str] = "fewer pixels, or pooled tokens where images have one size (a control)"

    def select(self, keep: Keep) -> Select:
        return Select(rank_by="grid", keep=keep, merge="pixels")
