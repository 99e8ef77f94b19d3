"""DART (Wen et al., EMNLP 2025, "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters
More")."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from planner.policies.before_decoder import BeforeDecoder, DroppedMerge
from planner.schedule import Keep, Select


class Dart(BeforeDecoder):
    """Duplicates go: a few pivots stay, and the tokens least similar to any of them.

    The paper applies its rule after an early decoder layer, with visual and textual pivots. Here it judges the
    projected features before layer 0, so that no layer runs on all tokens; pivots are the visual tokens of the largest
    norm.
    """

    name: ClassVar[str] = "dart"
    summary: ClassVar[str] = "before the decoder keep a few pivots and the tokens least similar to any of them"

    pivots: Annotated[int, Field(ge=1)] = 4
    merge: DroppedMerge = "none"

    def select(self, keep: Keep) -> Select:
        return Select(rank_by="pivot_distance", keep=keep, pivots=self.pivots, merge=self.merge)
