"""VisPruner (Zhang et al., ICCV 2025, "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning
in VLMs"), and near it VisionZip (Yang et al., CVPR 2025, "VisionZip: Longer is Better but Not Necessary in Vision
Language Models")."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from planner.policies.before_decoder import BeforeDecoder, DroppedMerge
from planner.schedule import Keep, Select


class VisPruner(BeforeDecoder):
    """Part of the budget goes to what the vision encoder attends to, the rest to what is unlike all that.

    ``merge=nearest`` is near VisionZip: what is dropped joins the kept token that it is most like. (There only the
    tokens beside the attended ones take others in, and likeness is that of the encoder's keys.)
    """

    name: ClassVar[str] = "vispruner"
    summary: ClassVar[str] = "before the decoder keep attended tokens, then those unlike them (VisionZip with a merge)"

    salient: Annotated[float, Field(gt=0, le=1)] = 0.5
    merge: DroppedMerge = "none"

    def select(self, keep: Keep) -> Select:
        return Select(rank_by="salient_then_distant", keep=keep, salient=self.salient, merge=self.merge)
