"""How few image tokens hold most of the image attention, layer by layer (sparsity appendix).

The attention is the last prompt token's, averaged over heads.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from calibrate.probes.base import Capture, OnePassProbe
from calibrate.probes.stats import mean
from planner.errors import InputError

#: The sparsity appendix looks at the top quarter of the tokens.
TOP_SHARE = 0.25


def top_tokens(attention: torch.Tensor, among: torch.Tensor, share: float = TOP_SHARE) -> torch.Tensor:
    """Mask ``[B, n]`` of the `share` of the tokens in `among` with the most attention, rounded up, ties to the left."""
    scores = attention.masked_fill(~among, -1.0)
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < (among.sum(dim=1, keepdim=True) * share).ceil()) & among


class TopTokensProbe(OnePassProbe):
    """A probe that sets a share of the most attended tokens apart.

    Args:
        top_share: which share.

    Raises:
        InputError: it is not above 0 and at most 1.
    """

    def __init__(self, top_share: float = TOP_SHARE) -> None:
        super().__init__()
        if not 0 < top_share <= 1:
            raise InputError(f"top_share must be above 0 and at most 1, got {top_share:g}", "Such as 0.25")
        self.top_share = top_share

    @property
    def settings(self) -> dict[str, Any]:
        return {"top_share": self.top_share}


class SparsityProbe(TopTokensProbe):
    """Share of the image attention on the most attended image tokens, and the image's share of all attention."""

    name: ClassVar[str] = "sparsity"

    def measure(self, capture: Capture) -> dict[str, torch.Tensor]:
        attention = capture.weights.mean(dim=1)
        on_image = (attention * capture.visual).sum(dim=1)
        on_top = (attention * top_tokens(attention, capture.visual, self.top_share)).sum(dim=1)
        return {"top_share": on_top / on_image.clamp_min(torch.finfo(torch.float32).tiny), "image": on_image}

    def summary(self) -> dict[str, Any]:
        return {
            "top_quarter_share": mean(self.table.column("top_share")),
            "image_attention": mean(self.table.column("image")),
        }
