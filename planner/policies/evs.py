"""EVS, efficient video sampling, as vLLM ships it (Bagrov et al., 2025, "Efficient Video Sampling: Pruning Temporally
Redundant Tokens for Faster VLM Inference")."""

from __future__ import annotations

from typing import ClassVar

from planner.policies.before_decoder import ForVideos
from planner.schedule import Keep, Select


class EVS(ForVideos):
    """Of a video the first frame stays, and then what has changed most since the frame before, place by place."""

    name: ClassVar[str] = "evs"
    summary: ClassVar[str] = "of a video keep the first frame, and then what changes most from frame to frame"

    def select(self, keep: Keep) -> Select:
        return Select(rank_by="frame_change", keep=keep)
