"""DivPrune (Alvar et al., CVPR 2025, "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models")."""

from __future__ import annotations

from typing import ClassVar

from planner.policies.before_decoder import BeforeDecoder, DroppedMerge
from planner.schedule import Keep, Select


class Diverse(BeforeDecoder):
    """The tokens kept are as far from each other as a greedy choice gets them: the max-min diversity problem over
    projected features, by cosine distance. The question plays no part."""

    name: ClassVar[str] = "diverse"
    summary: ClassVar[str] = "before the decoder keep tokens that are far from each other (greedy max-min distance)"

    merge: DroppedMerge = "none"

    def select(self, keep: Keep) -> Select:
        return Select(rank_by="max_min_distance", keep=keep, merge=self.merge)
