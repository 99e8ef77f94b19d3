"""FitPrune (Ye et al., AAAI 2025, "Fit and Prune: Fast and Training-Free Visual Token Pruning for Multi-modal Large
Language Models")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from planner.errors import InputError
from planner.policies.base import Policy
from planner.schedule import Count, Schedule, Select, Stage

if TYPE_CHECKING:
    from planner.spec import ModelSpec
    from planner.workload import Workload


class FitPrune(Policy):
    """After layer i, as many visual tokens are left as `counts` says, ranked by text-to-token times image-to-token
    attention.

    Without `counts`, the published method searches them on attention statistics; here the share dropped per layer is
    constant, and such that the visual tokens' FLOPs (``4nd^2 + 2n^2d + 3ndm``) fall by `reduction`.
    """

    name: ClassVar[str] = "fitprune"
    summary: ClassVar[str] = "a few tokens fewer after every layer, for a FLOPs budget"
    budget: ClassVar[str] = "reduction"

    reduction: Annotated[float, Field(gt=0, lt=1)] = 0.6
    counts: tuple[Annotated[int, Field(ge=0)], ...] | None = None

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        counts = self.counts if self.counts is not None else self._geometric(spec, workload)
        if len(counts) != spec.layers - 1:
            raise InputError(
                f"policy 'fitprune': {len(counts)} counts do not fit a model of {spec.layers} layers",
                f"Give one for each of the first {spec.layers - 1} layers",
            )
        if list(counts) != sorted(counts, reverse=True):
            raise InputError("policy 'fitprune': counts must not rise", "Give the tokens left after each layer")
        stages, first, present = [], 0, -1
        for layer, count in enumerate(counts):
            if count != present:
                stages.append(Stage(first=first, last=layer + 1, selects=(_select(count),)))
                first, present = layer + 1, count
        return Schedule(stages=(*stages, Stage(first=first, last=spec.layers)))

    @classmethod
    def scaled(cls, dropped: float) -> tuple[FitPrune, ...]:
        return (cls(reduction=min(max(dropped, 1e-4), 1 - 1e-4)),)

    def _geometric(self, spec: ModelSpec, workload: Workload | None) -> tuple[int, ...]:
        if workload is None or not workload.visual_tokens:
            raise InputError(
                "policy 'fitprune' needs to know how many visual tokens there are", "Give a workload, or counts="
            )
        visual, hidden, width = workload.visual_tokens, spec.hidden_size, spec.decoder.intermediate_size

        linear = (4 * hidden**2 + 3 * hidden * width) * visual
        squared = 2 * hidden * visual**2
        budget = (1 - self.reduction) * spec.layers * (linear + squared)

        def series(ratio: float) -> float:
            """The sum over layers of its powers."""
            return (1 - ratio**spec.layers) / (1 - ratio)

        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            if linear * series(middle) + squared * series(middle * middle) > budget:
                high = middle
            else:
                low = middle
        return tuple(int(visual * low ** (layer + 1) + 0.5) for layer in range(spec.layers - 1))


def _select(count: int) -> Select:
    return Select(rank_by="cross_self_attention" if count else "none", keep=Count(count=count))
