"""SparseVLM (Zhang et al., ICML 2025, "Visual Token Sparsification for Efficient Vision-Language Model Inference")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator

from planner.policies.base import Policy, keep_of, relative_layers, share_kept
from planner.policies.pyramiddrop import drop_at
from planner.schedule import Schedule

if TYPE_CHECKING:
    from planner.spec import ModelSpec
    from planner.workload import Workload


#: First layers with fewer tokens, for models of 32 layers.
PUBLISHED_LAYERS = (3, 7, 16)
#: Of the second and third budget to the one before: 300, 200 and 110 of 576.
_PROPORTIONS = (round(200 / 300, 4), round(110 / 200, 4))


class SparseVLM(Policy):
    """At each of `layers` the given number of visual tokens survives, ranked by the text tokens most similar to the
    image.

    Published lists on LLaVA-1.5-7B: 300/200/110 ("192 tokens"), 303/110/36 ("128"), 66/30/17 ("64"). Its layers 2, 6
    and 15, counted from 0, run on all tokens and drop behind themselves, so from layers 3, 7 and 16 on there are fewer:
    with these the paper's FLOPs are met. Token recycling, which merges dropped tokens into new ones, is not part of it.
    """

    name: ClassVar[str] = "sparsevlm"
    summary: ClassVar[str] = "fixed budgets at several depths, ranked by the text tokens most similar to the image"

    layers: tuple[int, ...] | None = None
    keep: tuple[float, ...] = (300, 200, 110)

    @model_validator(mode="after")
    def _matched(self) -> SparseVLM:
        if self.layers is not None and len(self.layers) != len(self.keep):
            raise ValueError(f"{len(self.layers)} layers need as many budgets, got {len(self.keep)}")
        if self.layers is None and len(self.keep) != 3:
            raise ValueError("without layers there are three budgets, as in keep=300/200/110")
        if any(budget < 0 for budget in self.keep):
            raise ValueError("a budget cannot be negative")
        return self

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        layers = self.layers if self.layers is not None else relative_layers(PUBLISHED_LAYERS, spec.layers)
        return drop_at(self.name, spec.layers, layers, [keep_of(budget) for budget in self.keep], "text_raters")

    @classmethod
    def scaled(cls, dropped: float) -> tuple[SparseVLM, ...]:
        # The published proportions of its budgets; from layer 1 on where the published depths cost more than they may.
        keep = (share_kept(dropped), *_PROPORTIONS)
        return cls(keep=keep), cls(layers=(1, 2, 3), keep=keep)
