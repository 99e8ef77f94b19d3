"""FastV (Chen et al., ECCV 2024, "An Image is Worth 1/2 Tokens After Layer 2")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from planner.errors import InputError
from planner.policies.base import Policy, check_layer
from planner.schedule import Count, Fraction, RankBy, Schedule, Select, Stage

if TYPE_CHECKING:
    from planner.cost.sweep_layout import SweepColumns, SweepLayout
    from planner.spec import ModelSpec
    from planner.workload import Workload


#: Whose attention ranks, as keys spell it.
SCORES: dict[str, RankBy] = {
    "last": "last_attention",
    "detrended": "last_attention_detrended",
    "text": "text_attention",
    "visual": "visual_attention",
}


class FastV(Policy):
    """Layers ``[0, k)`` see every visual token; after layer k - 1 the share `ratio` least attended by the last token
    is dropped. `rank_by` lets others attend: all text after the image, or the visual tokens (VisiPruner table 4), or
    takes off the last token's bias towards recent positions.

    The paper's rows with K = 0 are an accounting only: nothing has been attended before layer 0 that could rank tokens.
    """

    name: ClassVar[str] = "fastv"
    summary: ClassVar[str] = "after layer k drop the visual tokens the last token attends to least"
    budget: ClassVar[str] = "ratio"

    k: Annotated[int, Field(ge=0)] = 2
    ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    rank_by: Literal["last", "detrended", "text", "visual"] = "last"

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        if self.k == 0:
            raise InputError(
                "fastv with k=0 has no attention to rank by",
                f"Choose k of 1 or more; 'random:k=0,ratio={self.ratio}' costs what K=0 is said to cost",
            )
        return drop_after(self.name, spec.layers, self.k, self.ratio, SCORES[self.rank_by])

    @classmethod
    def scaled(cls, dropped: float) -> tuple[FastV, ...]:
        # After layer 0 already where two whole layers cost more than they may.
        return cls(k=2, ratio=dropped), cls(k=1, ratio=dropped)

    def fitted(self, spec: ModelSpec) -> FastV:
        later = (k for k in range(self.k, spec.layers) if k - 1 not in spec.decoder.recurrent)
        return self.model_copy(update={"k": next(later, self.k)})

    @classmethod
    def layout(cls, spec: ModelSpec, workload: Workload, given: SweepColumns, kind: Any) -> SweepLayout | None:
        return drop_after_layout(spec, workload, given, kind, "last_attention")


def drop_after(policy: str, layers: int, k: int, ratio: float, rank_by: RankBy, seed: int = 0) -> Schedule:
    """Everything in layers ``[0, k)``, a share `ratio` fewer visual tokens from layer k on."""
    check_layer(policy, "k", k, layers)
    # 1 - 0.9 is 0.09999999999999998: say the share that was meant.
    share = round(1 - ratio, 12)
    if share > 0:
        select = Select(rank_by=rank_by, keep=Fraction(fraction=share), seed=seed)
    else:
        select = Select(rank_by="none", keep=Count(count=0))
    return Schedule(stages=(Stage(first=0, last=k, selects=(select,)), Stage(first=k, last=layers)))


def drop_after_layout(
    spec: ModelSpec, workload: Workload, given: SweepColumns, kind: Any, rank_by: RankBy
) -> SweepLayout | None:
    """`drop_after` for arrays of ``k`` and ``ratio``, see `Policy.layout`."""
    import numpy as np

    from planner.cost.sweep_layout import Scoring, SweepLayout, column, inside, segment, share_of, whole_layers

    share = np.round(1 - column(given, "ratio", 0.5).astype(float), 12)
    k = whole_layers(column(given, "k", 2), 1, spec.layers - 1)
    # Dropping everything needs no scores.
    if given.keys() - {"k", "ratio"} or k is None or not inside(share, 1e-12, 1):
        return None
    visual = workload.visual_tokens
    left = share_of(share, visual)
    select = Select(rank_by=rank_by, keep=Count(count=1))
    scoring = Scoring(select, visual, workload.text_tokens, np.maximum(k - 1, 0).astype(kind))
    before = segment(workload, 0, k.astype(kind), visual, scorings=(scoring,))
    return SweepLayout((before, segment(workload, k.astype(kind), spec.layers, left.astype(kind))))
