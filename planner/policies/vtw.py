"""Visual tokens withdrawal (VTW, Lin et al., AAAI 2025, "Boosting Multimodal Large Language Models with Visual Tokens
Withdrawal for Rapid Inference")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from planner.policies.base import Policy
from planner.policies.fastv import drop_after
from planner.policies.proposals import earliest, proposing
from planner.schedule import Schedule

if TYPE_CHECKING:
    from planner.profile import Profile
    from planner.spec import ModelSpec
    from planner.workload import Workload


class VTW(Policy):
    """Layers ``[0, k)`` are the model's own; no visual token is left from layer k on. Nothing is ranked."""

    name: ClassVar[str] = "vtw"
    summary: ClassVar[str] = "from layer k on no visual token is left"
    budget: ClassVar[str] = "k"

    k: Annotated[int, Field(ge=1)]

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        return drop_after(self.name, spec.layers, self.k, 1.0, "none")

    @classmethod
    def candidates(cls, profile: Profile, spec: ModelSpec) -> Iterable[VTW]:
        """Around the layer from which the masking curve needs no image any more, and some up to the end."""
        layers = spec.layers
        points = proposing(profile, "masked_from")
        first = earliest(points, layers) if points is not None else layers // 2
        spread = {first + (layers - first) * share // 4 for share in range(4)}
        return [cls(k=k) for k in sorted({first - 2, first - 1, first + 1, *spread}) if 1 <= k < layers]
