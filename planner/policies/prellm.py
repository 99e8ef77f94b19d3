"""Pruning before the language model, as VisionZip does and as serving engines' image pruning rate means it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from planner.policies.base import Policy, keep_of
from planner.schedule import Fraction, RankBy, Schedule, Select, Stage

if TYPE_CHECKING:
    from planner.spec import ModelSpec
    from planner.workload import Workload

SCORES: dict[str, RankBy] = {"attention": "encoder_attention", "norm": "encoder_norm", "random": "random"}


class PreLLM(Policy):
    """The decoder gets `keep` of the visual tokens: a share up to 1, else a number. Ranked by what the vision
    encoder says."""

    name: ClassVar[str] = "prellm"
    summary: ClassVar[str] = "prune before the language model, by encoder attention or feature norm"

    keep: Annotated[float, Field(gt=0)] = 0.5
    rank_by: Literal["attention", "norm", "random"] = "attention"
    seed: Annotated[int, Field(ge=0)] = 0

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        keep = Fraction(fraction=1.0) if self.keep == 1 else keep_of(self.keep)
        select = Select(rank_by=SCORES[self.rank_by], keep=keep, seed=self.seed)
        return Schedule(entry=select, stages=(Stage(first=0, last=spec.layers),))
