"""EVS, efficient video sampling, as vLLM ships it (Bagrov et al., 2025, "Efficient Video Sampling: Pruning Temporally
Redundant Tokens for Faster VLM Inference")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from planner.policies.base import Policy
from planner.policies.before_decoder import BeforeDecoder
from planner.schedule import Keep, Select

if TYPE_CHECKING:
    from planner.profile import Profile
    from planner.spec import ModelSpec


class EVS(BeforeDecoder):
    """Of a video the first frame stays, and then what has changed most since the frame before, place by place.

    For videos alone: it is neither proposed nor compared by itself, since calibration does not know what comes.
    """

    name: ClassVar[str] = "evs"
    summary: ClassVar[str] = "of a video keep the first frame, and then what changes most from frame to frame"

    def select(self, keep: Keep) -> Select:
        return Select(rank_by="frame_change", keep=keep)

    @classmethod
    def scaled(cls, dropped: float) -> tuple[Policy, ...]:
        return ()

    @classmethod
    def candidates(cls, profile: Profile, spec: ModelSpec) -> Iterable[Policy]:
        return ()
