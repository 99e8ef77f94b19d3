"""HiRED (Arif et al., AAAI 2025, "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution
Vision-Language Models")."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from planner.policies.base import Policy
from planner.policies.before_decoder import BeforeDecoder
from planner.schedule import Keep, Select


class HiRED(BeforeDecoder):
    """The decoder gets `keep` of the visual tokens: those that the class token of the vision encoder attends to, within
    a budget for each tile by what its attention in an early layer finds there.

    It can be costed, not executed: `prellm` ranks by the same attention without such budgets.
    """

    name: ClassVar[str] = "hired"
    summary: ClassVar[str] = "before the decoder, by encoder attention within a budget for each tile (cost only)"

    keep: Annotated[float, Field(gt=0)] = 0.2

    def select(self, keep: Keep) -> Select:
        return Select(rank_by="tile_attention", keep=keep)

    @classmethod
    def scaled(cls, dropped: float) -> tuple[Policy, ...]:
        return ()

    @classmethod
    def candidates(cls, profile: object, spec: object) -> tuple[Policy, ...]:
        return ()
