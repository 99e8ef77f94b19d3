"""Pruning of generated tokens, as Dynamic-LLaVA (Huang et al., ICLR 2025, "Dynamic-LLaVA: Efficient Multimodal Large
Language Models via Dynamic Vision-language Context Sparsification") does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from planner.errors import InputError
from planner.policies.base import Policy, check_layer
from planner.schedule import Count, Fraction, Schedule, Stage

if TYPE_CHECKING:
    from planner.spec import ModelSpec
    from planner.workload import Workload


class Generated(Policy):
    """From layer `first` on, the KV cache keeps only `keep` of the generated tokens: a share up to 1, chosen as they
    come, else the last so many. Every new token sees itself and what is kept.

    It can be costed, not executed. The published method's predictor, a small network trained for it, is not counted.
    """

    name: ClassVar[str] = "generated"
    summary: ClassVar[str] = "the KV cache keeps only a part of the answer (cost only)"

    keep: Annotated[float, Field(ge=0)] = 0.5
    first: Annotated[int, Field(ge=0)] = 0

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        check_layer(self.name, "first", self.first, spec.layers)
        share = 0 < self.keep <= 1
        if not share and not self.keep.is_integer():
            raise InputError(f"policy 'generated': keep={self.keep:g} is no whole number of tokens", "Give one")
        keep = Fraction(fraction=self.keep) if share else Count(count=int(self.keep))
        whole = (Stage(first=0, last=self.first),) if self.first else ()
        return Schedule(stages=(*whole, Stage(first=self.first, last=spec.layers, cache_generated=keep)))
