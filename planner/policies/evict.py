"""Eviction from the KV cache alone, as SnapKV (Li et al., NeurIPS 2024, "SnapKV: LLM Knows What You are Looking for
Before Generation") does it for text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from planner.policies.base import Policy, keep_of
from planner.policies.fastv import SCORES
from planner.schedule import Count, Fraction, Schedule, Select, Stage

if TYPE_CHECKING:
    from planner.spec import ModelSpec
    from planner.workload import Workload


class Evict(Policy):
    """The prefill runs whole; then every layer's cache keeps `keep` of the visual tokens: a share up to 1, else a
    number. They are ranked once, by the last layer's attention, and are the same in all layers.
    """

    name: ClassVar[str] = "evict"
    summary: ClassVar[str] = "after a whole prefill the KV cache forgets the visual tokens that are attended to least"

    keep: Annotated[float, Field(ge=0)] = 0.25
    rank_by: Literal["last", "detrended", "text", "visual"] = "last"

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        keep = Fraction(fraction=1.0) if self.keep == 1 else keep_of(self.keep)
        nothing = keep == Count(count=0)
        select = Select(rank_by="none" if nothing else SCORES[self.rank_by], keep=keep)
        return Schedule(stages=(Stage(first=0, last=spec.layers, cache_visual="kept", selects=(select,)),))
