"""Nothing dropped: what every other policy is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from planner.policies.base import Policy
from planner.schedule import Schedule, dense

if TYPE_CHECKING:
    from planner.spec import ModelSpec
    from planner.workload import Workload


class Dense(Policy):
    """The model as it is."""

    name: ClassVar[str] = "dense"
    summary: ClassVar[str] = "nothing is dropped"

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        return dense(spec.layers)
