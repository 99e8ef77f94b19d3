"""PyramidDrop (Xing et al., CVPR 2025, "Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy
Reduction")."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from planner.errors import InputError
from planner.policies.base import Policy, check_layer, relative_layers, share_kept
from planner.schedule import Count, Fraction, Keep, RankBy, Schedule, Select, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.cost.sweep_layout import SweepColumns, SweepLayout
    from planner.spec import ModelSpec
    from planner.workload import Workload

#: As published, for models of 32 layers.
PUBLISHED_LAYERS = (8, 16, 24)


class PyramidDrop(Policy):
    """At each of `layers` the share `keep` of the visual tokens still there survives, ranked by the last token's
    attention one layer before.

    Without `layers`: a quarter, a half and three quarters of the depth, which is 8, 16 and 24 of 32.
    """

    name: ClassVar[str] = "pyramiddrop"
    summary: ClassVar[str] = "keep a share of the rest at several depths"

    layers: tuple[int, ...] | None = None
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        layers = self.layers if self.layers is not None else relative_layers(PUBLISHED_LAYERS, spec.layers)
        return drop_at(self.name, spec.layers, layers, [Fraction(fraction=self.keep)] * len(layers), "last_attention")

    @classmethod
    def scaled(cls, dropped: float) -> tuple[PyramidDrop, ...]:
        # From layer 1 on where the published depths alone cost more than they may.
        return cls(keep=share_kept(dropped)), cls(layers=(1, 2, 3), keep=share_kept(dropped))

    @classmethod
    def layout(cls, spec: ModelSpec, workload: Workload, given: SweepColumns, kind: Any) -> SweepLayout | None:
        import numpy as np

        from planner.cost.sweep_layout import Scoring, SweepLayout, column, inside, segment, share_of

        keep = column(given, "keep", 0.5)
        if given.keys() - {"keep"} or not inside(keep, 1e-9, 1):
            return None
        select = Select(rank_by="last_attention", keep=Count(count=1))
        bounds, segments = (0, *relative_layers(PUBLISHED_LAYERS, spec.layers), spec.layers), []
        present: Any = np.full(len(keep), workload.visual_tokens, kind)
        for first, last in pairwise(bounds):
            scorings = (Scoring(select, present, workload.text_tokens, last - 1),) if last < spec.layers else ()
            segments.append(segment(workload, first, last, present, scorings=scorings))
            present = share_of(keep, present).astype(kind)
        return SweepLayout(tuple(segments))


def drop_at(policy: str, depth: int, layers: Sequence[int], keeps: Sequence[Keep], rank_by: RankBy) -> Schedule:
    """One selection at the end of each stage; stage i ends before ``layers[i]``.

    Raises:
        InputError: layers are not increasing, or outside the model.
    """
    if not layers or list(layers) != sorted(set(layers)):
        raise InputError(
            f"policy '{policy}': layers {'/'.join(map(str, layers))} must increase", "Write them like layers=8/16/24"
        )
    for layer in layers:
        check_layer(policy, "layers", layer, depth)
    if layers[0] == 0:
        raise InputError(f"policy '{policy}' has no attention to rank by before layer 0", "Start at layer 1 or later")
    stages = []
    for first, last, keep in zip((0, *layers), layers, keeps, strict=False):
        none_left = isinstance(keep, Count) and keep.count == 0
        stages.append(
            Stage(first=first, last=last, selects=(Select(rank_by="none" if none_left else rank_by, keep=keep),))
        )
    return Schedule(stages=(*stages, Stage(first=layers[-1], last=depth)))
