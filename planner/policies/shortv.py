"""ShortV (Yuan et al., ICCV 2025, "ShortV: Efficient Multimodal Large Language Models by Freezing Visual Tokens in
Ineffective Layers")."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from planner.errors import InputError
from planner.policies.base import Policy, check_layer
from planner.schedule import Schedule, Stage

if TYPE_CHECKING:
    from planner.spec import ModelSpec
    from planner.workload import Workload


class ShortV(Policy):
    """Visual tokens pass by some layers as they are, and come back behind them.

    ShortV finds `layers` by how little each changes the output. With ``text_to_visual=none`` the text does not see the
    image there either: skipping a layer, as against discarding the image from it on (VisiPruner section 5.1).
    """

    name: ClassVar[str] = "shortv"
    summary: ClassVar[str] = "visual tokens skip the given layers and come back behind them"

    layers: tuple[Annotated[int, Field(ge=0)], ...]
    text_to_visual: Literal["full", "none"] = "full"

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise InputError(
                f"policy 'shortv': layers {'/'.join(map(str, self.layers))} must increase", "Write layers=20/21/22"
            )
        for layer in self.layers:
            check_layer(self.name, "layers", layer, spec.layers)
        bounds = sorted({0, spec.layers, *self.layers, *(layer + 1 for layer in self.layers)})
        rule: dict[str, Any] = {"visual_attention": "skip", "text_to_visual": self.text_to_visual}
        rule["cache_visual"] = "all" if self.text_to_visual == "full" else "none"
        stages = (
            Stage(first=first, last=last, **(rule if first in self.layers else {})) for first, last in pairwise(bounds)
        )
        return Schedule(stages=tuple(stages))
