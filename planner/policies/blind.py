"""No picture at all: the control that shows what the language model answers by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from planner.policies.base import Policy
from planner.schedule import Count, Schedule, Select, Stage

if TYPE_CHECKING:
    from planner.spec import ModelSpec
    from planner.workload import Workload


class Blind(Policy):
    """Every visual token goes before layer 0. What still agrees with the dense model was never read off the picture.

    The text keeps its positions, and markers around an image stay in the prompt.
    """

    name: ClassVar[str] = "blind"
    summary: ClassVar[str] = "no visual token reaches the decoder: what the language prior gives (a control)"

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        nothing = Select(rank_by="none", keep=Count(count=0))
        return Schedule(entry=nothing, stages=(Stage(first=0, last=spec.layers),))
