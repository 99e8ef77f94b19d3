"""Pruning before the language model, as VisionZip does and as serving engines' image pruning rate means it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from planner.policies.base import Policy, keep_of, share_kept
from planner.schedule import Fraction, RankBy, Schedule, Select, Stage

if TYPE_CHECKING:
    from planner.cost.sweep_layout import SweepColumns, SweepLayout
    from planner.spec import ModelSpec
    from planner.workload import Workload

_SCORES: dict[str, RankBy] = {"attention": "encoder_attention", "norm": "encoder_norm", "random": "random"}


class PreLLM(Policy):
    """The decoder gets `keep` of the visual tokens: a share up to 1, else a number. Ranked by what the vision
    encoder says."""

    name: ClassVar[str] = "prellm"
    summary: ClassVar[str] = "prune before the language model, by encoder attention or feature norm"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"norm": {"rank_by": "norm"}}

    keep: Annotated[float, Field(gt=0)] = 0.5
    rank_by: Literal["attention", "norm", "random"] = "attention"
    seed: Annotated[int, Field(ge=0)] = 0

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        keep = Fraction(fraction=1.0) if self.keep == 1 else keep_of(self.keep)
        select = Select(rank_by=_SCORES[self.rank_by], keep=keep, seed=self.seed)
        return Schedule(entry=select, stages=(Stage(first=0, last=spec.layers),))

    @classmethod
    def scaled(cls, dropped: float) -> tuple[PreLLM, ...]:
        return (cls(keep=share_kept(dropped)),)

    @classmethod
    def layout(cls, spec: ModelSpec, workload: Workload, given: SweepColumns, kind: Any) -> SweepLayout | None:
        from planner.cost.sweep_layout import SweepLayout, budget, column, segment

        keep = column(given, "keep", 0.5)
        left = budget(keep, workload.visual_tokens)
        # keep=1 is everything, not one token.
        if given.keys() - {"keep"} or left is None or (keep == 0).any() or (keep == 1).any():
            return None
        select = Select(rank_by="encoder_attention", keep=Fraction(fraction=1.0))
        return SweepLayout((segment(workload, 0, spec.layers, left.astype(kind)),), entry=select)
