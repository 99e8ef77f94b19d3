"""CDPruner (Zhang et al., NeurIPS 2025, "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token
Pruning in MLLMs")."""

from __future__ import annotations

from typing import ClassVar

from planner.policies.before_decoder import BeforeDecoder, DroppedMerge
from planner.schedule import Keep, Select


class CDPruner(BeforeDecoder):
    """Diverse tokens that have to do with the question: the greedy maximum of a determinantal point process.

    Relevance is the cosine of a projected feature with the mean embedding of the text after the image. Other questions
    keep other tokens.
    """

    name: ClassVar[str] = "cdpruner"
    summary: ClassVar[str] = "before the decoder keep diverse tokens that matter to the question (determinantal)"

    merge: DroppedMerge = "none"

    def select(self, keep: Keep) -> Select:
        return Select(rank_by="determinantal", keep=keep, merge=self.merge)
