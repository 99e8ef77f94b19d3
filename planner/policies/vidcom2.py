"""VidCom2 (Liu et al., EMNLP 2025, "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large
Language Models")."""

from __future__ import annotations

from typing import ClassVar

from planner.policies.before_decoder import ForVideos
from planner.schedule import Keep, Select


class VidCom2(ForVideos):
    """Frames unlike the rest of the video get more of the budget, and keep what is least like the video and the frame.

    The weights are as we read the paper; no published figure of it is reproduced here.
    """

    name: ClassVar[str] = "vidcom2"
    summary: ClassVar[str] = "of a video keep what is unique, more of it in frames that differ from the rest"

    def select(self, keep: Keep) -> Select:
        return Select(rank_by="frame_uniqueness", keep=keep)
