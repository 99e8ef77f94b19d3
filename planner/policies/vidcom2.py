"""VidCom2 (Liu et al., EMNLP 2025, "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large
Language Models")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from planner.policies.base import Policy
from planner.policies.before_decoder import BeforeDecoder
from planner.schedule import Keep, Select

if TYPE_CHECKING:
    from planner.profile import Profile
    from planner.spec import ModelSpec


class VidCom2(BeforeDecoder):
    """Frames unlike the rest of the video get more of the budget, and keep what is least like the video and the frame.

    For videos alone, as `evs`. The weights are as we read the paper; no published figure of it is reproduced here.
    """

    name: ClassVar[str] = "vidcom2"
    summary: ClassVar[str] = "of a video keep what is unique, more of it in frames that differ from the rest"

    def select(self, keep: Keep) -> Select:
        return Select(rank_by="frame_uniqueness", keep=keep)

    @classmethod
    def scaled(cls, dropped: float) -> tuple[Policy, ...]:
        return ()

    @classmethod
    def candidates(cls, profile: Profile, spec: ModelSpec) -> Iterable[Policy]:
        return ()
