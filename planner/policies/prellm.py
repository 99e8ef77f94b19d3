"""Pruning before the language model, as VisionZip does and as serving engines' image pruning rate means it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from planner.policies.before_decoder import BeforeDecoder, DroppedMerge
from planner.schedule import Keep, RankBy, Select

_SCORES: dict[str, RankBy] = {"attention": "encoder_attention", "norm": "encoder_norm", "random": "random"}


class PreLLM(BeforeDecoder):
    """The decoder gets `keep` of the visual tokens: a share up to 1, else a number. Ranked by what the vision
    encoder says."""

    name: ClassVar[str] = "prellm"
    summary: ClassVar[str] = "prune before the language model, by encoder attention or feature norm"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"norm": {"rank_by": "norm"}}

    keep: Annotated[float, Field(gt=0)] = 0.5
    rank_by: Literal["attention", "norm", "random"] = "attention"
    seed: Annotated[int, Field(ge=0)] = 0
    merge: DroppedMerge = "none"

    def select(self, keep: Keep) -> Select:
        return Select(rank_by=_SCORES[self.rank_by], keep=keep, seed=self.seed, merge=self.merge)
