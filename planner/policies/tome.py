"""Token merging inside the vision encoder (ToMe, Bolya et al., ICLR 2023, "Token Merging: Your ViT But Faster")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from planner.cost.merging import block_count
from planner.errors import InputError, UnsupportedModelError
from planner.policies.base import Policy, keep_of
from planner.schedule import Schedule, Stage, TowerMerge, kept

if TYPE_CHECKING:
    from planner.spec import ModelSpec
    from planner.workload import Workload


class ToMe(Policy):
    """Every block of the vision encoder merges as many tokens, or one more, as leave `keep` of each tile's to the
    decoder: a share below 1, else a number. `r` says how many each merges instead, as the paper does; a block with
    fewer than twice as many merges what it can.

    It can be costed, not executed.
    """

    name: ClassVar[str] = "tome"
    summary: ClassVar[str] = "merge tokens block by block inside the vision encoder (cost only)"

    keep: Annotated[float, Field(gt=0)] = 0.5
    r: Annotated[int, Field(ge=0)] | None = None

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        tower, projector, images = spec.vision, spec.projector, spec.images
        if tower is None or projector is None or images is None or not images.tile_tokens:
            raise UnsupportedModelError(
                f"policy 'tome': pictures of '{spec.family}' are not cut into tiles of one size",
                "Use a policy that drops tokens behind the vision encoder",
            )
        patches = images.tile_tokens - (tower.extra_tokens if projector.class_token else 0)
        read = block_count(tower) - (projector.unread_blocks or 0)
        wanted = [self.r] * block_count(tower) if self.r is not None else self._even(patches, read)
        merged: list[int] = []
        for pairs in wanted:
            # Only whole pairs of patches merge; the class token has no part in it.
            merged.append(min(pairs, (patches - sum(merged)) // 2))
        if self.r is None and sum(merged) < sum(wanted):
            raise InputError(
                f"policy 'tome': {read} blocks cannot merge {patches} tokens into keep={self.keep:g}", "Keep more"
            )
        return Schedule(stages=(Stage(first=0, last=spec.layers),), tower=TowerMerge(merged=tuple(merged)))

    def _even(self, patches: int, blocks: int) -> list[int]:
        """What is to go, in equal parts, the larger ones first."""
        each, rest = divmod(patches - int(kept(keep_of(self.keep), patches)), blocks)
        return [each + (index < rest) for index in range(blocks)]
