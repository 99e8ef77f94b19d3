"""Context pruning (S2, "Rethinking Visual Dependency in Long-Context Reasoning for Large Vision-Language Models")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from planner.errors import InputError
from planner.policies.base import Policy, check_layer
from planner.schedule import Fraction, Schedule, Select, Stage

if TYPE_CHECKING:
    from planner.spec import ModelSpec
    from planner.workload import Workload


class Context(Policy):
    """Over the first `layers` layers the share `rate` of the context's text tokens is dropped, in equal steps;
    visual tokens stay.

    Attributes:
        layers: over how many layers.
        rate: share of the context dropped in all, not per layer.
        protect: last text tokens (question and role tokens) that stay; by default what the workload does not call
            context.
    """

    name: ClassVar[str] = "context"
    summary: ClassVar[str] = "drop the text context that receives least attention, step by step"

    layers: Annotated[int, Field(ge=1)] = 10
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.3
    protect: Annotated[int, Field(ge=1)] | None = None

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        check_layer(self.name, "layers", self.layers, spec.layers)
        protect = self.protect
        if protect is None:
            if workload is None:
                raise InputError(
                    "policy 'context' cannot tell the context from the question",
                    "Give protect: how many last text tokens stay",
                )
            protect = max(1, workload.text_tokens - workload.context_tokens)
        stages = []
        for layer in range(self.layers):
            before, after = 1 - self.rate * layer / self.layers, 1 - self.rate * (layer + 1) / self.layers
            keep = Fraction(fraction=after / before)
            select = Select(rank_by="attention_received", keep=keep, of="context", protect=protect)
            stages.append(Stage(first=layer, last=layer + 1, selects=(select,)))
        return Schedule(stages=(*stages, Stage(first=self.layers, last=spec.layers)))
