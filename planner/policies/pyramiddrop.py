"""PyramidDrop (Xing et al., CVPR 2025, "Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy
Reduction")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from planner.errors import InputError
from planner.policies.base import Policy, check_layer
from planner.schedule import Count, Fraction, Keep, RankBy, Schedule, Select, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.spec import ModelSpec
    from planner.workload import Workload

#: Depth of the model the published layers refer to.
PUBLISHED_DEPTH = 32


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
        layers = self.layers if self.layers is not None else scaled((8, 16, 24), spec.layers)
        return drop_at(self.name, spec.layers, layers, [Fraction(fraction=self.keep)] * len(layers), "last_attention")


def scaled(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """Published layers on a model of another depth: the same relative depth, distinct, and at least 1."""
    chosen: list[int] = []
    for layer in layers:
        chosen.append(max(round(layer * depth / PUBLISHED_DEPTH), (chosen[-1] if chosen else 0) + 1))
    return tuple(chosen)


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
