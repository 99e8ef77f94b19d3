"""What policies share that drop visual tokens before layer 0 and leave the decoder as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from planner.policies.base import Policy, keep_of, share_kept
from planner.schedule import Fraction, Keep, Schedule, Select, Stage

if TYPE_CHECKING:
    from planner.cost.sweep_layout import SweepColumns, SweepLayout
    from planner.profile import Profile
    from planner.spec import ModelSpec
    from planner.workload import Workload

#: What becomes of dropped tokens, see `planner.schedule.Merge`.
DroppedMerge = Literal["none", "mean", "nearest"]
#: Shares of the visual tokens that such a policy proposes, each about .84 of the one before: what they cost is in
#: proportion, and a plan should end within a tenth of the cheapest that keeps the answers.
BUDGETS = (0.5, 0.42, 0.35, 0.3, 0.25, 0.21, 0.18, 0.15, 0.125, 0.105, 0.09, 0.075, 0.06)


class BeforeDecoder(Policy):
    """The decoder gets `keep` of the visual tokens: a share up to 1, else a number. A subclass says which ones.

    With ``per=picture`` or ``per=tile`` that is the budget of each picture, or of each tile of it.
    ``positions=packed`` counts the tokens that are left anew, as engines do that never see the others.
    """

    keep: Annotated[float, Field(gt=0)] = 0.25
    per: Literal["prompt", "picture", "tile"] = "prompt"
    positions: Literal["original", "packed"] = "original"

    def select(self, keep: Keep) -> Select:
        """The selection before layer 0."""
        raise NotImplementedError

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        keep = Fraction(fraction=1.0) if self.keep == 1 else keep_of(self.keep)
        stages = (Stage(first=0, last=spec.layers),)
        entry = self.select(keep).model_copy(update={"per": self.per})
        return Schedule(entry=entry, stages=stages, positions=self.positions)

    @classmethod
    def scaled(cls, dropped: float) -> tuple[Policy, ...]:
        return (cls(keep=share_kept(dropped)),)

    @classmethod
    def candidates(cls, profile: Profile, spec: ModelSpec) -> Iterable[Policy]:
        return tuple(cls(keep=budget) for budget in BUDGETS)

    @classmethod
    def layout(cls, spec: ModelSpec, workload: Workload, given: SweepColumns, kind: Any) -> SweepLayout | None:
        from planner.cost.sweep_layout import SweepLayout, budget, column, segment

        keep = column(given, "keep", cls.model_fields["keep"].default)
        left = budget(keep, workload.visual_tokens)
        # keep=1 is everything, not one token.
        if given.keys() - {"keep"} or left is None or (keep == 0).any() or (keep == 1).any():
            return None
        entry = cls().select(Fraction(fraction=1.0))
        if entry.merge == "pixels":
            return None  # what the vision encoder costs is another for every budget
        return SweepLayout((segment(workload, 0, spec.layers, left.astype(kind)),), entry=entry)


class ForVideos(BeforeDecoder):
    """For videos alone: neither proposed nor compared by itself, since calibration does not know what comes."""

    @classmethod
    def scaled(cls, dropped: float) -> tuple[Policy, ...]:
        return ()

    @classmethod
    def candidates(cls, profile: Profile, spec: ModelSpec) -> Iterable[Policy]:
        return ()
