"""A random subset of the same size: the control beside which every other policy is shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from planner.policies.base import Policy
from planner.policies.fastv import drop_after, drop_after_layout
from planner.schedule import Count, Fraction, Schedule, Select, Stage

if TYPE_CHECKING:
    from planner.cost.sweep_layout import SweepColumns, SweepLayout
    from planner.profile import Profile
    from planner.spec import ModelSpec
    from planner.workload import Workload


class Random(Policy):
    """FastV's shape with a seeded random choice; ``k=0`` chooses before the language model."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "after layer k keep a random subset (the control)"
    budget: ClassVar[str] = "ratio"

    k: Annotated[int, Field(ge=0)] = 2
    ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    seed: Annotated[int, Field(ge=0)] = 0

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        if self.k:
            return drop_after(self.name, spec.layers, self.k, self.ratio, "random", self.seed)
        share = round(1 - self.ratio, 12)
        keep = Fraction(fraction=share) if share > 0 else Count(count=0)
        return Schedule(
            entry=Select(rank_by="random", keep=keep, seed=self.seed), stages=(Stage(first=0, last=spec.layers),)
        )

    @classmethod
    def scaled(cls, dropped: float) -> tuple[Random, ...]:
        return cls(k=2, ratio=dropped), cls(k=1, ratio=dropped)

    @classmethod
    def candidates(cls, profile: Profile, spec: ModelSpec) -> Iterable[Random]:
        """None: a control is no plan."""
        return ()

    @classmethod
    def layout(cls, spec: ModelSpec, workload: Workload, given: SweepColumns, kind: Any) -> SweepLayout | None:
        return drop_after_layout(spec, workload, given, kind, "random")
